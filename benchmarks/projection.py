"""Make a projection of image features from public images: `dptrain/models/projections/<name>.safetensors`.

`python -m benchmarks.projection` makes `chest_xray`, used by the recipe chest_xray_findings: mean and leading
principal directions of EfficientNet-Lite0's root features over one image (at two sizes) of each of `--images` patient
groups of the public Kermany cohort's training split. Labels are not read. Another cohort than the one that is to
be protected, and a public one: a projection made from private images would have to be charged.

The other way round, `adult_chest_xray_mean` of the recipe chest_xray_pneumonia is the mean of one image of each of
the 475 training patients of the public NIH subset, with no directions (`--width 0`):

`python -m benchmarks.projection --name adult_chest_xray_mean --recipe chest_xray_findings --sides 288 --width 0
--images 475`
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dptrain import data
from dptrain.data.inference import load_image
from dptrain.models.pretrained import PROJECTIONS, pretrained_efficientnet_lite
from dptrain.settings import load
from dptrain.terminal.progress import progress


def principal(features: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mean [F] and basis [F, width] of features [R, F]; what is projected has length sqrt(F) on average."""
    mean = features.mean(0)
    centred = (features - mean).double()
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:width]
    # The sign of a direction is arbitrary: the largest entry is made positive, so that every machine agrees.
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    length = (centred @ directions.T).norm(dim=1).mean()
    return mean, (directions.T * (features.shape[1] ** 0.5 / length)).float()


def first_images(config: data.DataConfig, count: int) -> list[Path]:
    """The first training image of `count` patients, in the order of their ids' SHA-256."""
    manifest = data.read_manifest(config)
    columns = config.columns
    found: dict[str, int] = {}
    for row, patient in enumerate(manifest.columns[columns.patient]):
        if columns.split is None or manifest.columns[columns.split][row] == "train":
            found.setdefault(patient, manifest.folder / manifest.columns[columns.image][row])  # type: ignore[arg-type]
    order = sorted(found, key=lambda patient: hashlib.sha256(patient.encode()).hexdigest())
    return [found[patient] for patient in order[:count]]  # type: ignore[misc]


def save(path: Path, mean: Tensor, basis: Tensor | None, source: str) -> None:
    """Write the file, in half precision: what is rounded here is rounded alike for everyone. No basis: the mean."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"mean": mean.half().contiguous()}
    if basis is not None:
        tensors["basis"] = basis.half().contiguous()
    save_file(tensors, path, metadata={"source": source})


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.projection", description=__doc__.split("\n\n")[0])
    parser.add_argument("--name", default="chest_xray")
    parser.add_argument("--recipe", default="chest_xray_pneumonia", help="whose images; the cohort must be public")
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 288], help="pixels a side: a view each")
    parser.add_argument("--width", type=int, default=128, help="number of directions; 0: the mean alone")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=PROJECTIONS)
    options = parser.parse_args(argv)
    shared = Path(__file__).parents[2] / "shared" / "data"
    if "DPTRAIN_DATA" not in os.environ and shared.is_dir():
        os.environ["DPTRAIN_DATA"] = str(shared)
    body = pretrained_efficientnet_lite(root_features=True).eval().body
    features = []
    with progress(len(options.sides) * options.images, "computing features") as bar, torch.inference_mode():
        for side in options.sides:
            settings = load([f"recipe={options.recipe}", f"data.image_shape=[1,{side},{side}]"])
            paths = first_images(settings.data, options.images)
            for start in range(0, len(paths), 8):
                part = torch.stack([load_image(settings.data, path) for path in paths[start : start + 8]])
                features.append(body(part))
                bar.advance(len(part))
    whole = torch.cat(features)
    mean, basis = principal(whole, options.width) if options.width else (whole.mean(0), None)
    source = f"{settings.data.source} ({settings.data.licence})"
    save(options.folder / f"{options.name}.safetensors", mean, basis, source)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

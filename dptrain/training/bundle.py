"""The model as a MONAI bundle: safetensors, metadata, and an inference that runs on one new image.

`python -m monai.bundle run --config_file model/configs/inference.json --bundle_root model --image new.png`
prints the probability of each class, how sure the model may be (the calibrated confidence and the conformal
set), and the privacy statement's place.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dptrain import __version__
from dptrain.data.expected import Expected
from dptrain.files import whole_or_nothing, write_json
from dptrain.models import ModelStore
from dptrain.models.network import build_network
from dptrain.plain import Json
from dptrain.records import RunFolder
from dptrain.settings import DataConfig, Settings, TrainingConfig, from_yaml, to_yaml
from dptrain.settings.data import shape_of
from dptrain.training.calibration import margins
from dptrain.vocabulary import Activation, Labels, task_spec

WEIGHTS = "model.safetensors"
NETWORK = "configs/network.yaml"
METADATA = "configs/metadata.json"
INFERENCE = "configs/inference.json"


def write_bundle(
    folder: RunFolder, network: nn.Module, settings: Settings, calibration: Json | None, *, private: bool
) -> None:
    """Write weights, network settings, metadata and inference configuration below `model/`.

    private: whether a finite epsilon holds of everything that the weights know.
    """
    ModelStore(folder.weights).save(network)
    root = folder.model
    with whole_or_nothing(root / NETWORK) as file:
        file.write(to_yaml(_inference_settings(settings)))
    write_json(root / METADATA, _metadata(settings, calibration, private=private))
    write_json(
        root / INFERENCE,
        {
            "imports": ["$import json", "$import dptrain.training.bundle as bundle"],
            "bundle_root": ".",
            "image": "",
            "model": "$bundle.load_bundle(@bundle_root)",
            "prediction": "$bundle.predict(@model, @image)",
            "run": ["$print(json.dumps(@prediction, indent=1, ensure_ascii=False))"],
        },
    )


def _metadata(settings: Settings, calibration: Json | None, *, private: bool) -> Json:
    """The bundle's metadata (MONAI's schema 20240725). `privacy` is filled in with the public report."""
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "trained with dptrain"},
        "monai_version": _version("monai"),
        "pytorch_version": str(torch.__version__).split("+")[0],
        "numpy_version": _version("numpy"),
        "required_packages_version": {"dptrain": __version__},
        "name": settings.name,
        "task": f"{settings.data.task} ({', '.join(settings.data.classes)})",
        "description": f"Trained under differential privacy at the {settings.data.unit} level; see privacy."
        if private
        else "Trained without differential privacy: epsilon is infinite.",
        "authors": "",
        "copyright": "",
        "intended_use": "Research; not a medical device.",
        "data_source": settings.data.source,
        "network_data_format": _data_format(settings),
        "expects": Expected.of(settings.data).to_json(),
        "how_to_run": "dptrain predict run=FOLDER input=FOLDER_OF_IMAGES out=predictions.csv "
        "(FOLDER: of the run, or this bundle's)",
        "calibration": calibration,
        "privacy": None,
    }


def _data_format(settings: Settings) -> Json:
    """What goes into the network and what comes out."""
    shape, data = shape_of(settings.data), settings.data
    channels, space = int(shape[0]) if shape else 1, [int(size) for size in shape[1:]]
    return {
        "inputs": {
            "image": {
                "type": "image",
                "format": "magnitude",
                "num_channels": channels,
                "spatial_shape": space,
                "dtype": "float32",
                "value_range": list(Expected.of(data).scaled or ()),
                "is_patch_data": False,
                "channel_def": {str(c): f"channel {c}" for c in range(channels)},
            }
        },
        "outputs": {
            "pred": {
                "type": "probabilities",
                "format": "classes",
                "num_channels": len(data.classes),
                "spatial_shape": space if task_spec(data.task).labels is Labels.MASK else [],
                "dtype": "float32",
                "value_range": [0, 1],
                "is_patch_data": False,
                "channel_def": {str(c): name for c, name in enumerate(data.classes)},
            }
        },
    }


def _inference_settings(settings: Settings) -> Settings:
    """The settings that inference needs: no ledger, no paths and no split of the training site."""
    kept = ("name", "format", "task", "classes", "image_shape", "transforms", "table", "unit", "keep")
    return Settings(
        name=settings.name,
        model=settings.model,
        data=DataConfig(**{name: getattr(settings.data, name) for name in kept}),
        training=TrainingConfig(seed=settings.training.seed),
    )


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


class Bundle:
    """A network ready for inference, with its preprocessing and calibration."""

    def __init__(self, network: nn.Module, settings: Settings, calibration: Json | None) -> None:
        self.network = network.eval()
        self.settings = settings
        self.calibration = calibration


def load_bundle(root: str | Path) -> Bundle:
    """Rebuild the network of a bundle and load its weights. Raises ConfigError for a target not allowed."""
    root = Path(root)
    settings = from_yaml(root / NETWORK)
    settings = replace(settings, model=replace(settings.model, weights=None))
    network = build_network(settings).whole
    ModelStore(root / WEIGHTS).restore(network)
    metadata = json.loads((root / METADATA).read_text(encoding="utf-8"))
    return Bundle(network, settings, metadata.get("calibration"))


def predict(bundle: Bundle, image: str | Path | Tensor) -> Json:
    """Probabilities and a statement of how sure they are, for one image file or tensor [C, …].

    For segmentation: the number of voxels of each structure and the mean confidence; the label map itself
    comes from `bundle.network`.
    """
    from dptrain import data

    settings = bundle.settings
    tensor = image if isinstance(image, Tensor) else data.load_image(settings.data, Path(image))
    with torch.inference_mode():
        logits = bundle.network(tensor[None].float()).double().cpu()
    task, classes = settings.data.task, list(settings.data.classes)
    spec = task_spec(task)
    if spec.labels is Labels.MASK:
        probability = logits.softmax(1)[0]
        label = probability.argmax(0)
        return {
            "voxels": {name: int((label == c + 1).sum()) for c, name in enumerate(classes)},
            "mean_confidence": round(float(probability.max(0).values.mean()), 4),
        }
    calibration = bundle.calibration
    temperature = calibration["temperature"] if calibration else 1.0
    scaled = logits / temperature
    phi = margins(scaled.numpy(), task)
    if spec.activation is Activation.SOFTMAX:
        probability = scaled.softmax(1)[0]
    else:
        probability = scaled.sigmoid().reshape(-1)
    result: Json
    if spec.one_logit:
        result = {"probability": {classes[0]: 1 - float(probability[0]), classes[1]: float(probability[0])}}
    else:
        result = {"probability": {name: float(value) for name, value in zip(classes, probability)}}
    result["calibrated"] = calibration is not None
    if calibration is None:
        result["certainty"] = "No calibration was paid for: read the probabilities as scores, not as frequencies."
        return result
    share = 1 - calibration["miscoverage"]
    if spec.labels is Labels.FINDINGS:
        sets = [[w for w, m in zip(("absent", "present"), pair) if m >= calibration["threshold"]] for pair in phi[0]]
        result["possible"] = dict(zip(classes, sets))
        result["certainty"] = f"Each finding's list holds the truth in about {share:.0%} of findings like these."
        return result
    possible = [name for name, margin in zip(classes, phi[0]) if margin >= calibration["threshold"]]
    result["possible"] = possible
    sure = {0: "The image is unlike those of the calibration; do not rely on this result.", 1: "One class remains."}
    result["certainty"] = f"The list holds the true class in about {share:.0%} of images like these. " + sure.get(
        len(possible), f"{len(possible)} classes remain: the model is not sure."
    )
    return result

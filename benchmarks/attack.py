"""Reconstruction: pictures out of messages and weights, and who is named in a line-up, by epsilon.

    python -m benchmarks.attack                          X-rays of Kermany, 64 px, one a patient (minutes)
    python -m benchmarks.attack --trials 30 --only lineup
    python -m benchmarks.attack --table                  no measurement: write table and figure anew

Rows are measured on real X-rays. The pictures in the committed figure are of made-up patients (phantoms): no
patient's picture, and nothing made from one, is committed. `--show FOLDER` draws the figure with the X-rays there.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import _results
from dptrain import data
from dptrain.audit import rounds
from dptrain.audit.games import pictures
from dptrain.audit.games.pictures import Column
from dptrain.audit.work import Kept
from dptrain.ledger import Keys, Ledger, PublicDeclaration
from dptrain.records.attack import AttackRow
from dptrain.samples.phantoms import phantom
from dptrain.settings import Settings, load
from dptrain.training.planning import plan_for
from dptrain.vocabulary import Purpose, Split

SIDE, PATIENTS = 64, 1500
KERMANY = "kermany_paediatric_cxr_224"
COLUMNS = (
    *("game", "data", "arm", "epsilon", "coordinator", "network", "patients_in_message", "prior", "targets", "draws"),
    *("candidates", "trials", "success", "low", "high", "chance", "bound", "bound_of", "p_value", "mean_rank"),
    *("rank_p_value", "ssim", "nearest_other", "guess", "shuffled", "above", "seconds", "commit"),
)
WORDS = (
    f"data.image_shape=[1,{SIDE},{SIDE}]",
    f"data.transforms=[{{_target_:monai.transforms.Resized,keys:[image],spatial_size:[{SIDE},{SIDE}],mode:area}},"
    "{_target_:monai.transforms.ScaleIntensityRanged,keys:[image],a_min:0,a_max:255,b_min:0,b_max:1,clip:true}]",
    *("model=linear", f"model.network.in_features={SIDE * SIDE}", "model.network.num_classes=1"),
    *("privacy.target_epsilon=8", f"privacy.expected_batch_size={PATIENTS // 10}", "privacy.steps=20"),
    *("privacy.max_grad_norm=0.1", "privacy.max_records_per_patient=1", "optimizer.lr=2.0", "training.device=cpu"),
)
GAMES = {
    "pictures": ("attack.game=[message,weights]", "attack.prior=public", "attack.epsilons=[1,1000]"),
    "lineup": ("attack.game=[lineup]", "attack.epsilons=[1,1000]"),
    "canaries": ("attack.game=[lineup]", "attack.targets=canaries"),
    "known": ("attack.game=[lineup]", "attack.draws=known"),
}


def one_a_patient(source: Path, target: Path) -> None:
    """A copy of the manifest and images with the first X-ray of each patient group, all of them trained on."""
    (target / "images").mkdir(parents=True)
    with open(source / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not row["duplicate_of"]]
    first = {row["patient_group"]: row for row in reversed(rows)}
    chosen = [first[group] for group in sorted(first)][:PATIENTS]
    with open(target / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file", "patient", "label"])
        writer.writeheader()
        for row in chosen:
            shutil.copy(source / row["file"], target / row["file"])
            writer.writerow({"file": row["file"], "patient": row["patient_group"], "label": row["class_name"]})


def phantoms(target: Path) -> None:
    """As :func:`one_a_patient`, of made-up patients."""
    drawn = target.with_name("drawn")
    phantom(drawn, patients=600, size=SIDE, seed=1)
    one_a_patient(drawn, target)


def settings_of(folder: Path, *words: str) -> Settings:
    """The settings of a cohort in `folder` at a site beside it."""
    return load(
        [
            *("name=xrays", f"data.root={folder.parent}", f"data.folder={folder.name}", "data.issuer=benchmark"),
            *("data.columns.patient=patient", "data.columns.label=[label]", "data.classes=[normal,pneumonia]"),
            *("data.split.train=1", "data.split.validation=0", "data.split.test=0"),
            *(f"ledger.url={folder.parent / 'ledger.sqlite'}", f"ledger.keys={folder.parent / 'keys'}"),
            *WORDS,
            *words,
        ]
    )


def play(folder: Path, name: str, trials: int) -> tuple[list[AttackRow], list[Column]]:
    """The games of this name on a cohort, as `dptrain attack` plays them."""
    settings = settings_of(folder, *GAMES[name], f"attack.trials={trials}", "attack.candidates=100")
    place = folder.parent
    if (place / "ledger.sqlite").exists():
        keys = Keys.load(place / "keys")
        ledger = Ledger.open(place / "ledger.sqlite", keys)
        cohort = data.scan(settings.data, keys)
    else:
        keys = Keys.create(place / "keys", "only of this benchmark")
        ledger = Ledger.create(place / "ledger.sqlite", keys)
        cohort = data.scan(settings.data, keys)
        ledger.register(
            "xrays",
            unit="patient",
            issuer="benchmark",
            public_size=len(cohort.split(Split.TRAIN)),
            patients=cohort.hashes(),
            owner="benchmark",
            public=PublicDeclaration(source="Kermany 2018, or made up", licence="CC BY 4.0"),
            controller=keys.controller("only of this benchmark"),
        )
    plan = plan_for(settings, ledger.status("xrays"))
    with ledger.admit("xrays", purpose=Purpose.AUDIT, run=f"bench-{name}", fingerprint=cohort.fingerprint) as grant:
        work = Kept(place / f"work-{name}", name)
        bench = rounds.Bench(settings, plan, cohort, grant, work, cohort.split(Split.TRAIN), torch.device("cpu"))
        rows, columns, _ = rounds.play(bench, print)
    return rows, columns


def measure(source: Path, only: list[str], trials: int) -> tuple[list[dict[str, object]], list[Column]]:
    """Rows of real X-rays, and their pictures."""
    rows: list[dict[str, object]] = []
    columns: list[Column] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "xrays"
        one_a_patient(source, folder)
        for name in only:
            begun, stamp = time.monotonic(), _results.stamp()
            played, drawn = play(folder, name, trials if name != "pictures" else min(trials, 30))
            columns = columns or drawn
            seconds = round((time.monotonic() - begun) / max(1, len(played)), 1)
            rows += [{**row.to_json(), "data": KERMANY, "seconds": seconds, **stamp} for row in played]
    return rows, columns


def write(rows: list[dict[str, object]], command: str, folder: Path, head: dict[str, str] | None = None) -> None:
    """Table and rows."""
    _results.write(
        "attack",
        rows,
        command=command,
        table_columns=COLUMNS,
        title="Reconstruction: what comes back without protection, and under it",
        notes=NOTES,
        folder=folder,
        head=head,
    )


NOTES = """
One chest X-ray each of 1,500 patient groups (Kermany 2018, CC BY 4.0), 64 × 64 pixels. The training that the line-up
and the private heads are about: a head on the pixels, 20 steps, rate 0.1, clip 0.1. An empty epsilon is no
protection (arm *none*), the clip alone (*clip only*), or the plan without its noise. `success`: the share named or
reconstructed, with its 95 % Clopper–Pearson interval; a picture counts where its structural similarity is 0.9 or
more, above that of the nearest other patient, and the right patient is the first of 100. `bound`: the most that the
promise allows for naming the right one of 100 (γ), for what `bound_of` says. Nulls: `nearest_other`, `guess` (the
mean picture), `shuffled`. Where several patients share a message, each is held against the most alike of all
pictures found, and so is the null. `seconds`: of all rows of a game together, divided by their number, on a machine
that did other work as well: no timing.
"""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data") / KERMANY)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=list(GAMES), choices=list(GAMES))
    parser.add_argument("--folder", type=Path, default=_results.RESULTS)
    parser.add_argument("--show", type=Path, help="a folder for the figure with the X-rays")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args(words)
    path = asked.folder / "attack.json"
    earlier = json.loads(path.read_text()) if path.exists() else {"rows": [], "meta": None}
    rows, head = earlier["rows"], earlier["meta"]
    if not asked.table:
        new, columns = measure(asked.data, asked.only, asked.trials)
        games = {(row["game"], row.get("targets"), row.get("draws")) for row in new}
        rows = [row for row in rows if (row["game"], row.get("targets"), row.get("draws")) not in games] + new
        head = None
        if asked.show is not None and columns:
            asked.show.mkdir(parents=True, exist_ok=True)
            pictures.draw(asked.show / "attack.png", [AttackRow.of(row) for row in rows], columns, "Kermany 2018")
    write(rows, _results.command_of("attack", sys.argv[1:] if words is None else words), asked.folder, head)
    with tempfile.TemporaryDirectory() as place:
        phantoms(Path(place) / "xrays")
        _, columns = play(Path(place) / "xrays", "pictures", pictures.SHOWN)
    note = "Pictures: made-up patients (phantoms). Points: X-rays of Kermany 2018, 64 px, one a patient."
    pictures.draw(asked.folder / "attack.png", [AttackRow.of(row) for row in rows], columns, note)
    return 0


if __name__ == "__main__":
    sys.exit(main())

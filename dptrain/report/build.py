"""Write an edition of the report into a run folder, whole or not at all.

The controller's edition lies in `restricted/report/` (0700, 0600), the public one in `report/`. Beside the faces
stands `manifest.json`: their hashes, their language, and the versions that made them.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dptrain import __version__
from dptrain.errors import ConfigError
from dptrain.files import make_folder, whole_or_nothing
from dptrain.records import RunFolder
from dptrain.report import facts as facts_module
from dptrain.report.faces import render
from dptrain.report.shapes import Facts
from dptrain.vocabulary import Edition

if TYPE_CHECKING:
    from dptrain.ledger.evidence import Evidence

MANIFEST_SCHEMA = "dptrain.report/1"
MANIFEST = "manifest.json"
MAKERS = ("typst", "matplotlib", "Jinja2", "PyYAML")


def build(
    folder: str | os.PathLike[str],
    lang: str = "en",
    edition: str = Edition.CONTROLLER,
    *,
    ledger: Evidence | None = None,
) -> Path:
    """Write the report of a run folder and return the folder it was written to.

    Args:
        lang: `de` or `en`.
        edition: `controller` (restricted/report/) or `public` (report/; what a recorded decision names).
        ledger: what the ledger says of the run, where it can be had.

    Raises:
        ConfigError: no run there, or an unknown language or edition.
    """
    place = RunFolder(folder)
    facts = facts_module.read(place.path, ledger=ledger)
    if edition == Edition.PUBLIC:
        facts = facts_module.public(facts)
    elif edition != Edition.CONTROLLER:
        raise ConfigError(f"edition={edition} is unknown: controller or public.")
    target = place.restricted_report if edition == Edition.CONTROLLER else place.report
    write(target, facts, lang, private=edition == Edition.CONTROLLER)
    if edition == Edition.CONTROLLER:
        place.note_access(f"report written ({lang})")
    return target


def write(target: Path, facts: Facts, lang: str, *, private: bool) -> None:
    """Every face and the manifest. All faces are made before the first is written."""
    write_faces(target, render(facts, lang), facts.edition, lang, private=private)


def write_faces(target: Path, faces: dict[str, bytes], edition: str, lang: str, *, private: bool) -> None:
    """Write rendered faces with their manifest into `target`."""
    if target.parent.name == "restricted":
        make_folder(target.parent, private=True)
    make_folder(target, private=private)
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "edition": edition,
        "lang": lang,
        "made_with": makers(),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in faces.items()},
    }
    for name, content in {**faces, MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode()}.items():
        with whole_or_nothing(target / name, "wb", private=private) as file:
            file.write(content)


def makers() -> dict[str, str]:
    """Versions that decide how a face looks, byte by byte."""
    return {"dptrain": __version__, **{name: version(name) for name in MAKERS}}

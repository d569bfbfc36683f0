"""The run folder: one place for the names of its files and their modes."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from dptrain.errors import ConfigError
from dptrain.files import file_sha256, make_folder, utc_now, write_json
from dptrain.plain import Json
from dptrain.records.run import RUN_SCHEMA, Run
from dptrain.records.shape import Record


class RunFolder:
    """Paths of a run. Everything below `restricted/` is for the controller alone (modes 0700 and 0600)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.facts = self.path / "run.json"
        self.config = self.path / "config.yaml"
        self.released_model = self.path / "model"
        self.tensorboard = self.path / "tensorboard"
        self.report = self.path / "report"
        self.restricted = self.path / "restricted"
        self.restricted_model = self.restricted / "model"
        self.assessment = self.restricted / "assessment.yaml"
        self.metrics = self.restricted / "metrics.json"
        self.predictions = self.restricted / "predictions.npz"
        self.training_log = self.restricted / "training.jsonl"
        self.checkpoint = self.restricted / "checkpoint.pt"
        self.restricted_tensorboard = self.restricted / "tensorboard"
        self.audit = self.restricted / "audit"
        self.audit_json = self.audit / "audit.json"
        self.attack = self.restricted / "attack"
        self.attack_json = self.attack / "attack.json"
        self.restricted_report = self.restricted / "report"
        self.access_log = self.restricted / "access.log"
        self.notes = self.restricted / "notes.txt"

    @property
    def model(self) -> Path:
        """The bundle: below `restricted/` until it is released. In older folders it is at the top."""
        is_open = self.released_model.exists() and not self.restricted_model.exists()
        return self.released_model if is_open else self.restricted_model

    @property
    def weights(self) -> Path:
        """The model's weights, wherever the bundle lies."""
        return self.model / "model.safetensors"

    @property
    def metadata(self) -> Path:
        """The bundle's metadata; a release fills in what they say of privacy."""
        return self.model / "configs" / "metadata.json"

    def name_of(self, path: Path) -> str:
        """A file of the folder as the ledger names it: its path; the model's files as if they were released."""
        if path.is_relative_to(self.restricted_model):
            path = self.released_model / path.relative_to(self.restricted_model)
        return path.relative_to(self.path).as_posix()

    def place_of(self, name: str) -> Path:
        """Where a file lies that the ledger names so (the inverse of :meth:`name_of`)."""
        path = self.path / name
        if path.is_relative_to(self.released_model):
            return self.model / path.relative_to(self.released_model)
        return path

    def hashes(self, *paths: Path) -> dict[str, str]:
        """name -> SHA-256 of files that were just written. Raises OSError where one cannot be read."""
        return {self.name_of(path): file_sha256(path) for path in paths}

    def create(self) -> RunFolder:
        """Make the folder. Raises ConfigError for one that holds a run, or is another's, or cannot be written.

        Of two runs that begin at once, the one that makes `restricted` has it.
        """
        if self.facts.exists():
            raise ConfigError(
                f"{self.path} already holds a run.", remedy="Choose another training.run, or resume it."
            )
        make_folder(self.path)
        make_folder(self.restricted, private=True, new=True)
        make_folder(self.restricted_model, private=True)
        return self

    def discard(self) -> None:
        """Take back :meth:`create` and the configuration where nothing came of it; what is not empty stays."""
        self.config.unlink(missing_ok=True)
        for folder in (self.restricted_model, self.restricted, self.path):
            with suppress(OSError):
                folder.rmdir()

    def read_facts(self) -> Json:
        """run.json. Raises ConfigError where there is none, it is torn, or of a schema that is not known."""
        try:
            facts = json.loads(self.facts.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path} holds no run (run.json is missing).", remedy="Name the folder that `train` printed."
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.facts} cannot be read: {type(error).__name__}.") from None
        if not isinstance(facts, dict) or facts.get("schema") != RUN_SCHEMA:
            raise ConfigError(f"{self.facts} is not of schema {RUN_SCHEMA}: this program cannot read it.")
        return facts

    def read(self) -> Run:
        """run.json as this program wrote it. Raises ConfigError as :meth:`read_facts`."""
        return Run.of(self.read_facts())

    def write(self, run: Run) -> None:
        """Write run.json whole."""
        write_json(self.facts, run.to_json())

    def amend(self, **sections: Record) -> None:
        """Write run.json with some sections made anew; every other byte's meaning stays, known or not."""
        amended = {name: section.to_json() for name, section in sections.items()}
        write_json(self.facts, {**self.read_facts(), **amended})

    def note_access(self, what: str) -> None:
        """Append who read or wrote restricted material, and when."""
        _append(self.access_log, f"{utc_now()}\t{os.getuid() if hasattr(os, 'getuid') else '?'}\t{what}\n")

    def note(self, sentence: str) -> None:
        """Append a sentence for the controller alone: what follows from private data, as who was left out."""
        _append(self.notes, f"{utc_now()}\t{sentence}\n")


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(line)

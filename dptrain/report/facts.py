"""One set of facts from a run folder, and the two editions of it.

Everything that a report says is read off the dictionary that :func:`read` returns; every face (HTML, PDF,
registry entry, model card, bundle metadata) is made from it alone, so a number stands in one place. Nothing
here looks at a patient: it reads `run.json`, `restricted/metrics.json` and `restricted/audit/audit.json`,
hashes the model and the configuration, and rearranges. Pieces that are missing, torn or of the wrong type
become entries of `missing`; they never end the report.

`schema/facts-1.json` describes the result.
"""

from __future__ import annotations

import copy
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dptrain import __version__
from dptrain.cells import SMALL_CELL
from dptrain.errors import ConfigError
from dptrain.files import file_sha256, utc_now
from dptrain.records import RunFolder
from dptrain.records.metrics import METRICS_SCHEMA
from dptrain.records.run import RUN_SCHEMA
from dptrain.vocabulary import Edition, Generator, RunStatus

FACTS_SCHEMA = "dptrain.facts/1"
AUDIT_SCHEMA = "dptrain.audit/1"
ITEMS = ("model", "metrics", "groups", "audit")
PERSON_CHECKS = ("unit", "size", "weights", "constants", "access", "basis", "keys", "copies")
LONGEST_TEXT = 600
CHANCE_OF_100 = 50
# The program's own words for how much a patient is promised: right guesses of 100, where 50 need no model.
STRENGTHS = ((60, "strong"), (75, "moderate"), (90, "limited"), (100, "weak"))

Facts = dict[str, Any]


class _Piece:
    """One file, read with suspicion: typed getters; what is absent or of the wrong type is noted once."""

    def __init__(self, name: str, values: Any, missing: list[dict[str, str]]) -> None:
        self.name = name
        self.values = values if isinstance(values, dict) else {}
        self.known = isinstance(values, dict)
        self.missing = missing

    def raw(self, *path: str) -> Any:
        """The value at `path`, or None."""
        value: Any = self.values
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def fault(self, path: Sequence[str]) -> None:
        if self.known:
            self.missing.append({"piece": self.name, "why": "field", "detail": ".".join(path)})

    def number(self, *path: str, needed: bool = False) -> float | None:
        value = self.raw(*path)
        found = number(value)
        if found is None and (needed or value is not None):
            self.fault(path)
        return found

    def share(self, *path: str, needed: bool = False) -> float | None:
        """A number between 0 and 1."""
        value = self.raw(*path)
        found = share(value)
        if found is None and (needed or value is not None):
            self.fault(path)
        return found

    def integer(self, *path: str, needed: bool = False) -> int | None:
        found = self.number(*path, needed=needed)
        return None if found is None else round(found)

    def text(self, *path: str, needed: bool = False) -> str | None:
        value = self.raw(*path)
        if isinstance(value, str) and value:
            return clean(value)
        if needed or (value is not None and not isinstance(value, str)):
            self.fault(path)
        return None

    def flag(self, *path: str) -> bool | None:
        value = self.raw(*path)
        return value if isinstance(value, bool) else None

    def rows(self, *path: str) -> list[dict[str, Any]]:
        value = self.raw(*path)
        return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []

    def mapping(self, *path: str) -> dict[str, Any]:
        value = self.raw(*path)
        return {clean(str(key)): inner for key, inner in value.items()} if isinstance(value, dict) else {}

    def texts(self, *path: str) -> list[str]:
        value = self.raw(*path)
        return [clean(str(item)) for item in value if item is not None] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def share(value: Any) -> float | None:
    """A probability, or None; rounding errors past 0 and 1 are cut."""
    found = number(value)
    return None if found is None or not -1e-9 <= found <= 1 + 1e-9 else min(1.0, max(0.0, found))


def clean(text: str) -> str:
    """Text as text: control characters and marks that turn the direction of writing are shown by their code,
    lone surrogates replaced, and what is longer than 600 characters is cut."""
    shown = []
    for character in text[: LONGEST_TEXT + 1]:
        category = unicodedata.category(character)
        if character in "\n\t":
            shown.append(" ")
        elif category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            shown.append(f"⟨U+{ord(character):04X}⟩")
        else:
            shown.append(character)
    if len(text) > LONGEST_TEXT:
        shown[LONGEST_TEXT:] = ["…"]
    return "".join(shown)


def _load(path: Path, name: str, schema: str | None, missing: list[dict[str, str]]) -> _Piece:
    """A JSON file as a piece; absent, torn or of an unknown schema is noted."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append({"piece": name, "why": "absent", "detail": ""})
        return _Piece(name, None, missing)
    except (OSError, ValueError, RecursionError):
        missing.append({"piece": name, "why": "torn", "detail": ""})
        return _Piece(name, None, missing)
    if not isinstance(values, dict) or (schema and values.get("schema") not in (schema, None)):
        missing.append({"piece": name, "why": "schema", "detail": ""})
        return _Piece(name, None, missing)
    return _Piece(name, values, missing)


def read(folder: str | Path, *, ledger: Any = None, made: str | None = None) -> Facts:
    """The controller's facts of a run folder.

    Args:
        ledger: the cohort's `CohortStatus`, where the ledger can be reached; gives the budget its history.
        made: time of the report (ISO 8601, UTC); now by default.

    Raises:
        ConfigError: there is no such folder, or it holds nothing of a run.
    """
    place = RunFolder(folder)
    if not place.path.is_dir():
        raise ConfigError(f"{place.path} is no folder.", remedy="Name the folder that `dptrain train` printed.")
    known = (place.facts, place.config, place.metrics, place.audit / "audit.json", place.weights)
    if not any(path.exists() for path in known):
        raise ConfigError(
            f"{place.path} holds nothing of a run.", remedy="Name the folder that `dptrain train` printed."
        )
    missing: list[dict[str, str]] = []
    run = _load(place.facts, "run", RUN_SCHEMA, missing)
    metrics = _load(place.metrics, "metrics", METRICS_SCHEMA, missing)
    audit = _load(place.audit / "audit.json", "audit", AUDIT_SCHEMA, missing)
    facts: Facts = {
        "schema": FACTS_SCHEMA,
        "edition": "controller",
        "made": made or utc_now(),
        "program": __version__,
        "run": _run(run),
        "cohort": _cohort(run),
        "privacy": _privacy(run),
        "odds": {},
        "budget": _budget(run, ledger),
        "ledger": _ledger(run),
        "model": _model(run),
        "integrity": _integrity(place, run, missing),
        "not_covered": [
            {name: clean(str(row.get(name) or "")) for name in ("what", "status", "note")}
            for row in run.rows("not_covered")
        ],
        "checks": [
            {name: clean(str(row.get(name) or "")) for name in ("id", "name", "status", "by", "note")}
            for row in run.rows("checks")
        ],
        "utility": _utility(metrics) if metrics.known else None,
        "audit": _audit(audit) if audit.known else None,
        "released": _released(run),
        "missing": missing,
    }
    facts["odds"] = _odds(facts)
    _judge(facts)
    return facts


def public(facts: Facts) -> Facts:
    """The public edition: what the guarantee covers, plus what the recorded decision names.

    Utility, groups and audit are un-noised; each stays out unless `released.items` names it.
    """
    items = set((facts["released"] or {}).get("items", ()))
    edition = copy.deepcopy(facts)
    edition["edition"] = "public"
    edition["run"]["command"] = None  # it names places inside the house
    utility, audit = edition["utility"], edition["audit"]
    if utility is not None:
        if "metrics" not in items:
            utility.update(overall={}, by_class={}, reliability=[], temperature=None, conformal=None)
            utility.update(patients=None, records=None)
        if "groups" not in items:
            utility["groups"], utility["gaps"], utility["suppressed"] = {}, [], []
        if not items & {"metrics", "groups"}:
            edition["utility"] = None
    if audit is not None:
        audit["baseline_max"] = {"mean": None, "max": None}  # no risk, and easily mistaken for one
        if "audit" not in items:
            edition["audit"] = None
        elif "groups" not in items:
            audit["groups"], audit["suppressed"] = {}, []
    edition["missing"] = [
        row
        for row in facts["missing"]
        if not (row["piece"] == "audit" and "audit" not in items)
        and not (row["piece"] == "metrics" and not items & {"metrics", "groups"})
    ]
    edition["odds"] = _odds(edition)
    _judge(edition)
    return edition


def _run(run: _Piece) -> Facts:
    return {
        "id": run.text("id", needed=True),
        "created": run.text("created"),
        "finished": run.text("finished"),
        "status": run.text("status", needed=True),
        "recipe": run.text("recipe"),
        "command": run.text("command"),
        "task": run.text("task"),
        "classes": run.texts("classes"),
        "program": {key: clean(str(value)) for key, value in run.mapping("program").items()},
        "resume": {"crashes": run.integer("resume", "crashes"), "steps_lost": run.integer("resume", "steps_lost")},
        "sweep": (
            {"trials": run.integer("sweep", "trials"), "epsilon_total": run.number("sweep", "epsilon_total")}
            if run.mapping("sweep")
            else None
        ),
    }


def _cohort(run: _Piece) -> Facts:
    return {
        "name": run.text("cohort", "name", needed=True),
        "version": run.integer("cohort", "version"),
        "unit": run.text("cohort", "unit"),
        "unit_column": run.text("cohort", "unit_column"),
        "public": run.flag("cohort", "public"),
        "public_size": run.integer("cohort", "public_size", needed=True),
        "units_per_person": run.integer("cohort", "units_per_person"),
        "owner": run.text("cohort", "owner"),
        "source": run.text("cohort", "source"),
        "licence": run.text("cohort", "licence"),
        "cautions": run.texts("cohort", "cautions"),
    }


SHARES = ("sample_rate", "tpr_at_1pct_fpr", "tpr_at_5pct_fpr", "tpr_at_10pct_fpr", "auc_ceiling", "advantage")
NUMBERS = ("target_epsilon", "n_delta", "max_grad_norm", "normaliser", "mu")


def _privacy(run: _Piece) -> Facts:
    infinite = run.flag("privacy", "infinite") is True
    # A null without "infinite" is unknown, not unlimited.
    facts = {
        **{name: run.share("privacy", name) for name in SHARES},
        **{name: run.number("privacy", name) for name in NUMBERS},
        "epsilon": run.number("privacy", "epsilon", needed=not infinite),
        "delta": run.share("privacy", "delta", needed=not infinite),
        "noise_multiplier": run.number("privacy", "noise_multiplier", needed=not infinite),
    }
    if facts["epsilon"] is not None and (facts["epsilon"] < 0 or infinite):
        run.fault(("privacy", "epsilon"))
        facts["epsilon"] = None
    counts = (
        "expected_batch_size",
        "steps_planned",
        "steps_run",
        "steps_charged",
        "max_records_per_patient",
        "views",
    )
    return {
        **facts,
        **{name: run.integer("privacy", name) for name in counts},
        "infinite": infinite,
        "unit": run.text("privacy", "unit"),
        "adjacency": run.text("privacy", "adjacency"),
        "accountant": run.text("privacy", "accountant"),
        "generator": run.text("privacy", "generator"),
        "mechanisms": _mechanisms(run.rows("privacy", "mechanisms")),
        "inherited": [
            {
                "run": clean(str(row.get("run") or "")),
                "epsilon": number(row.get("epsilon")),
                "mechanisms": _mechanisms(row.get("mechanisms")),
            }
            for row in run.rows("privacy", "inherited")
        ],
        "epsilon_over_steps": _pairs(run.raw("privacy", "epsilon_over_steps")),
        "tradeoff": _curve(run, ("privacy", "tradeoff"), "fpr", "tpr"),
        "group_epsilon": _numbers(run.mapping("privacy", "group_epsilon")),
        "reconstruction": _numbers(run.mapping("privacy", "reconstruction")),
    }


def _mechanisms(rows: Any) -> list[Facts]:
    return [
        {
            "what": clean(str(row.get("what") or "training")),
            "sample_rate": share(row.get("sample_rate")),
            "noise_multiplier": number(row.get("noise_multiplier")),
            "steps": None if number(row.get("steps")) is None else round(float(row["steps"])),
        }
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    ]


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    found = {key: number(value) for key, value in values.items()}
    return {key: value for key, value in found.items() if value is not None}


def _pairs(values: Any) -> list[list[float]]:
    pairs = [pair for pair in values if isinstance(pair, list) and len(pair) == 2] if isinstance(values, list) else []
    found = [[number(a), number(b)] for a, b in pairs]
    return [[a, b] for a, b in found if a is not None and b is not None]


def _curve(piece: _Piece, path: tuple[str, ...], x: str, y: str) -> Facts | None:
    """Two lists of the same length with values between 0 and 1, sorted by x, or None."""
    values = piece.raw(*path)
    if values is None:
        return None
    xs = values.get(x) if isinstance(values, dict) else None
    ys = values.get(y) if isinstance(values, dict) else None
    if isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys) >= 2:
        points = [(number(a), number(b)) for a, b in zip(xs, ys)]
        good = sorted((a, b) for a, b in points if a is not None and b is not None and 0 <= a <= 1 and 0 <= b <= 1)
        if len(good) == len(points):
            return {x: [a for a, _ in good], y: [b for _, b in good]}
    piece.fault(path)
    return None


def _budget(run: _Piece, status: Any) -> Facts:
    before, after = run.number("gate", "spent_before"), run.number("gate", "spent_after")
    total = run.number("gate", "budget_epsilon")
    this = max(after - before, 0.0) if before is not None and after is not None else None
    history = [] if status is None else cohort_history(status, str(run.raw("id")))
    return {
        "kind": run.text("gate", "kind"),
        "accountant": run.text("gate", "accountant"),
        "order": run.number("gate", "order"),
        "epsilon": total,
        "delta": run.share("gate", "budget_delta"),
        "before": before,
        "this": this,
        "after": after,
        "remaining": run.number("gate", "remaining"),
        "share_used": after / total if after is not None and total else None,
        "minimum_charge": run.number("gate", "minimum_charge"),
        "locked": run.flag("gate", "locked"),
        "history": history,
    }


def cohort_history(status: Any, this: str | None = None) -> list[Facts]:
    """One row a run of the cohort's `CohortStatus`: what it was charged, and what was spent after it."""
    return [
        {
            "run": clean(run.run),
            "cohort": clean(run.cohort),
            "date": clean(run.date),
            "steps": run.steps,
            "epsilon": number(run.epsilon_pld),
            "private": run.private,
            "gate_after": number(run.epsilon_gate_after),
            "status": clean(run.status),
            "this": run.run == this,
        }
        for run in status.runs
    ]


def _ledger(run: _Piece) -> Facts:
    head = ("ledger", "head")
    return {
        "grant": run.text("ledger", "grant"),
        "site": run.text("ledger", "site") or run.text(*head, "site"),
        "witness": run.flag("ledger", "witness"),
        "rollback_detectable": run.flag("ledger", "rollback_detectable"),
        "head": {
            "hash": run.text(*head, "hash"),
            "entries": run.integer(*head, "entries"),
            "signature": run.text(*head, "signature"),
            "time": run.text(*head, "time"),
            "public_key": run.text(*head, "public_key"),
        },
    }


def _model(run: _Piece) -> Facts:
    return {
        "network": run.text("model", "network"),
        "train": run.text("model", "train"),
        "parameters": run.integer("model", "parameters"),
        "trainable_parameters": run.integer("model", "trainable_parameters"),
        "changes": run.texts("model", "changes"),
        "weights_source": run.text("weights", "source"),
        "weights_sha256": run.text("weights", "sha256"),
        "weights_note": run.text("weights", "note"),
    }


def hash_or_none(path: Path) -> str | None:
    """SHA-256 of a file, or None where it cannot be read."""
    try:
        return file_sha256(path)
    except OSError:
        return None


def _integrity(place: RunFolder, run: _Piece, missing: list[dict[str, str]]) -> Facts:
    """Hashes as stated in run.json beside the hashes of what lies in the folder."""
    facts = {}
    for name, path, stated in (
        ("model", place.weights, run.text("model", "sha256")),
        ("config", place.config, run.text("config_sha256")),
    ):
        found = hash_or_none(path)
        if found is None:
            missing.append({"piece": name, "why": "absent", "detail": ""})
        facts[name] = {
            "stated": stated,
            "found": found,
            "match": None if None in (stated, found) else stated == found,
        }
    return facts


def _released(run: _Piece) -> Facts | None:
    if not run.mapping("released"):
        return None
    return {
        "items": [item for item in run.texts("released", "items") if item in ITEMS],
        "recipient": run.text("released", "recipient"),
        "purpose": run.text("released", "purpose"),
        "advice": run.text("released", "advice"),
        "controller": run.text("released", "controller"),
        "date": run.text("released", "date"),
        "entry": run.text("released", "entry"),
    }


def _estimate(value: Any) -> Facts | None:
    """{value, low, high} or a bare number."""
    if isinstance(value, dict):
        found = number(value.get("value"))
        return (
            None
            if found is None
            else {"value": found, "low": number(value.get("low")), "high": number(value.get("high"))}
        )
    found = number(value)
    return None if found is None else {"value": found, "low": None, "high": None}


def _estimates(values: Any) -> dict[str, Facts]:
    found = {clean(str(k)): _estimate(v) for k, v in values.items()} if isinstance(values, dict) else {}
    return {key: value for key, value in found.items() if value is not None}


def _utility(metrics: _Piece) -> Facts:
    groups: dict[str, dict[str, Facts]] = {}
    for column, table in metrics.mapping("groups").items():
        groups[column] = {}
        for value, cell in (table if isinstance(table, dict) else {}).items():
            if not isinstance(cell, dict):
                continue
            counts = {
                name: None if number(cell.get(name)) is None else round(cell[name])
                for name in ("patients", "records")
            }
            rest = {key: inner for key, inner in cell.items() if key not in counts}
            groups[column][clean(str(value))] = {**counts, "metrics": _estimates(rest.get("metrics", rest))}
    groups = {column: _in_order(table) for column, table in groups.items() if table}
    overall = _estimates(metrics.raw("overall"))
    by_class = {name: _estimates(table) for name, table in metrics.mapping("by_class").items()}
    main = next((name for name in ("auroc", "dice") if name in overall), next(iter(overall), None))
    conformal = metrics.mapping("conformal")
    conformal["alpha"] = conformal.pop("miscoverage", conformal.get("alpha"))
    return {
        "split": metrics.text("split"),
        "level": metrics.text("level"),
        "patients": metrics.integer("patients"),
        "records": metrics.integer("records"),
        "main": main,
        "overall": overall,
        "by_class": {name: table for name, table in by_class.items() if table},
        "groups": groups,
        "gaps": _gaps(groups, main),
        "suppressed": _suppressed(metrics),
        "reliability": [
            {name: number(row.get(name)) for name in ("low", "high", "confidence", "observed", "count")}
            for row in metrics.rows("reliability")
            if None not in (number(row.get("confidence")), number(row.get("observed")))
            and (number(row.get("count")) or 0) >= SMALL_CELL
        ],
        "temperature": metrics.number("temperature"),
        "conformal": {name: number(conformal.get(name)) for name in ("alpha", "threshold", "coverage", "set_size")}
        if metrics.mapping("conformal")
        else None,
        "bootstrap": {
            "replicates": metrics.integer("bootstrap", "replicates"),
            "level": metrics.number("bootstrap", "level"),
        },
    }


def _in_order(table: dict[str, Facts]) -> dict[str, Facts]:
    """Groups as people count them: 'below 18' first, '2' before '10', words by the alphabet after the numbers."""

    def place(name: str) -> tuple[bool, float, bool, str]:
        found = re.match(r"(below )?(-?\d+(?:\.\d+)?)", name)
        return (True, 0.0, True, name) if found is None else (False, float(found[2]), found[1] is None, name)

    return dict(sorted(table.items(), key=lambda item: place(item[0])))


def _gaps(groups: dict[str, dict[str, Facts]], main: str | None) -> list[Facts]:
    """For each column: the best and the worst group by the main metric, and whether their intervals overlap."""
    gaps = []
    for column, table in groups.items():
        scored = [(cell["metrics"][main], value) for value, cell in table.items() if main in cell["metrics"]]
        if len(scored) < 2:
            continue
        worst, best = min(scored, key=lambda s: s[0]["value"]), max(scored, key=lambda s: s[0]["value"])
        low, high = best[0]["low"], worst[0]["high"]
        gaps.append(
            {
                "column": column,
                "metric": main,
                "worst": worst[1],
                "best": best[1],
                "difference": best[0]["value"] - worst[0]["value"],
                "intervals_overlap": None if low is None or high is None else low <= high,
            }
        )
    return gaps


def _suppressed(piece: _Piece) -> list[Facts]:
    return [
        {name: clean(str(row.get(name) or "")) for name in ("group", "value")} for row in piece.rows("suppressed")
    ]


def _audit(audit: _Piece) -> Facts:
    groups: dict[str, dict[str, Facts]] = {}
    for column, table in audit.mapping("groups").items():
        groups[column] = {
            clean(str(value)): {
                "patients": number(cell.get("patients")),
                **{name: share(cell.get(name)) for name in ("share", "low", "high")},
            }
            for value, cell in (table if isinstance(table, dict) else {}).items()
            if isinstance(cell, dict) and share(cell.get("share")) is not None
        }
    return {
        "game": audit.text("game"),
        "attack": audit.text("attack"),
        "references": audit.integer("references") or audit.integer("models"),
        "patients": audit.integer("patients"),
        "exposed": {
            "count": audit.integer("exposed", "count"),
            **{name: audit.share("exposed", name) for name in ("share", "low", "high")},
        },
        "verdicts": {name: audit.integer("verdicts", name) for name in ("exposed", "not_shown", "inconclusive")},
        "confirmed": {name: audit.integer("confirmed", name) for name in ("tested", "confirmed")}
        if audit.mapping("confirmed")
        else None,
        "roc": _curve(audit, ("roc",), "fpr", "tpr"),
        "auc": {
            name: audit.number("auc", name) for name in ("mean", "median", "max", "max_by_chance", "low", "high")
        },
        "baseline_max": {name: audit.number("baseline_max", name) for name in ("mean", "max")},
        "survival": _curve(audit, ("survival",), "auc", "share"),
        "survival_by_chance": _curve(audit, ("survival",), "auc", "null")
        if _has(audit, "survival", "null")
        else None,
        "tpr_at": {
            rate: {
                **{name: number(cell.get(name)) for name in ("mean", "median", "max", "ceiling", "low", "high")},
                "extrapolated": cell.get("extrapolated") is True,
            }
            for rate, cell in audit.mapping("tpr_at").items()
            if isinstance(cell, dict) and number(_float(rate)) is not None
        },
        "groups": {column: _in_order(table) for column, table in groups.items() if table},
        "suppressed": _suppressed(audit),
        "new_scan": {name: audit.number("new_scan", name) for name in ("auc", "low", "high")}
        if audit.mapping("new_scan")
        else None,
        "canary": {
            "kind": audit.text("canary", "kind"),
            "method": audit.text("canary", "method"),
            "count": audit.integer("canary", "count"),
            "trainings": audit.integer("canary", "trainings"),
            "epsilon_lower": audit.number("canary", "epsilon_lower"),
            "confidence": audit.number("canary", "confidence"),
            "broken": audit.flag("canary", "broken"),
        }
        if audit.mapping("canary")
        else None,
        "withheld": [
            {
                "what": clean(str(row.get("what") or "")),
                "have": number(row.get("have")),
                "need": number(row.get("need")),
            }
            for row in audit.rows("withheld")
        ],
        "masks_sha256": audit.text("masks_sha256"),
    }


def _has(piece: _Piece, *path: str) -> bool:
    return piece.raw(*path) is not None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def at(curve: Facts | None, rate: float, x: str = "fpr", y: str = "tpr") -> float | None:
    """The curve's value at `rate`, by straight lines between its points."""
    if curve is None:
        return None
    xs, ys = curve[x], curve[y]
    if rate <= xs[0]:
        return float(max(b for a, b in zip(xs, ys) if a == xs[0])) if rate == xs[0] else float(ys[0])
    for left, right, low, high in zip(xs, xs[1:], ys, ys[1:]):
        if rate <= right:
            return float(low + (high - low) * (rate - left) / (right - left)) if right > left else float(high)
    return float(ys[-1])


def of_100(probability: float | None, *, up: bool = True) -> int | None:
    """A probability as a count of 100; ceilings are rounded up, never past 100."""
    if probability is None:
        return None
    return min(100, math.ceil(round(100 * probability, 6)) if up else round(100 * probability))


def _odds(facts: Facts) -> Facts:
    """The guarantee in counts of 100, and what the audit measured beside it.

    `right_of_100`: right guesses of 100 by the best attacker where half of the patients were in the training;
    (1 + advantage)/2 (Kairouz et al. 2015; Nanayakkara et al. 2023 for the framing). `pairs`: of 100 models
    without the patient so many are wrongly called 'with', of 100 with the patient at most so many rightly.
    """
    privacy, audit = facts["privacy"], facts["audit"]
    pairs = []
    for name, rate in (("tpr_at_1pct_fpr", 0.01), ("tpr_at_5pct_fpr", 0.05), ("tpr_at_10pct_fpr", 0.10)):
        ceiling = 1.0 if privacy["infinite"] else privacy[name]
        cell = (audit or {}).get("tpr_at", {}).get(f"{rate:g}") or {}
        mean = cell.get("mean")
        if mean is None and audit is not None:
            mean = at(audit["roc"], rate)
        pairs.append(
            {
                "without": round(100 * rate),
                "with_at_most": of_100(ceiling),
                "ceiling": ceiling,
                "measured_mean": mean,
                "measured_max": cell.get("max"),
                "extrapolated": cell.get("extrapolated"),
            }
        )
    advantage = 1.0 if privacy["infinite"] else privacy["advantage"]
    right = None if advantage is None else of_100((1 + advantage) / 2)
    strength = None if right is None else next(word for most, word in STRENGTHS if right <= most)
    return {"right_of_100": right, "chance_of_100": CHANCE_OF_100, "strength": strength, "pairs": pairs}


def extrapolated(audit: Facts | None) -> list[Facts]:
    """Rates whose count is withheld and whose extrapolation stands in its place, marked."""
    return [row for row in (audit or {}).get("withheld", []) if row["what"].startswith("tpr_at_")]


def person_checks(facts: Facts) -> list[dict[str, str]]:
    """What no program can check: the boxes of the section on the mechanism, the run's own ones among them."""
    own = [row for row in facts["checks"] if row["by"] == "person" and row["id"] not in PERSON_CHECKS]
    ours = [{"id": name, "note": ""} for name in PERSON_CHECKS]
    return [*ours[:5], *own, *ours[5:]]


def _judge(facts: Facts) -> None:
    """Fill in `complete`, `warnings`, `verdict` and `risks`: ids that the faces turn into sentences."""
    privacy, audit, run, utility = facts["privacy"], facts["audit"], facts["run"], facts["utility"]
    controller = facts["edition"] == Edition.CONTROLLER
    items = set((facts["released"] or {}).get("items", ()))
    no_audit = audit is None and (controller or "audit" in items)
    every_piece = all(row["piece"] in ("audit", "metrics") for row in facts["missing"])
    complete = run["status"] == RunStatus.COMPLETE and every_piece
    canary = (audit or {}).get("canary") or {}
    unknown = privacy["epsilon"] is None and not privacy["infinite"]
    mismatch = [name for name, row in facts["integrity"].items() if row["match"] is False]
    failed = [row["id"] for row in facts["checks"] if row["by"] == "program" and row["status"] == "failed"]
    exposed = (audit or {}).get("exposed", {}).get("count")
    warnings = [
        ("guarantee_broken", canary.get("broken") is True),
        ("incomplete", not complete),
        ("hash_mismatch", bool(mismatch)),
        ("infinite", privacy["infinite"]),
        ("fast_generator", privacy["generator"] == Generator.FAST),
        ("check_failed", bool(set(failed) - {"noise"})),
        ("audit_missing", no_audit),
        ("audit_thin", len((audit or {}).get("withheld", [])) > len(extrapolated(audit))),
        ("rollback", facts["ledger"]["rollback_detectable"] is not True),
    ]
    facts["complete"] = complete
    facts["warnings"] = [name for name, is_so in warnings if is_so]
    if canary.get("broken") is True:
        verdict = "broken"
    elif mismatch:
        verdict = "mismatch"
    elif not complete or unknown:
        verdict = "incomplete"
    elif privacy["infinite"]:
        verdict = "none"
    elif exposed:
        verdict = "exposed"
    elif audit is None:
        verdict = "unmeasured" if controller else "promised"
    elif exposed is None:
        verdict = "undecided"
    else:
        verdict = "holds"
    facts["verdict"] = verdict
    gaps = (utility or {}).get("gaps", [])
    open_checks = len(person_checks(facts))
    risks = [
        ("exposed", bool(exposed)),
        ("weak_promise", facts["odds"]["strength"] in ("limited", "weak") and not privacy["infinite"]),
        ("group_gap", any(gap["intervals_overlap"] is False for gap in gaps)),
        ("cautions", bool(facts["cohort"]["cautions"])),
        ("several_units", (facts["cohort"]["units_per_person"] or 1) > 1),
        ("inherited", bool(privacy["inherited"])),
        ("package_weights", facts["model"]["weights_source"] in ("package", "public", "file")),
        ("crashes", bool(run["resume"]["crashes"])),
        ("sweep", bool(run["sweep"] and run["sweep"]["trials"])),
        ("sweep_open", bool(run["sweep"] and not run["sweep"]["trials"])),
        ("test_patients", True),
        ("person_checks", open_checks > 0),
    ]
    facts["risks"] = [name for name, is_so in risks if is_so]
    facts["open_checks"] = open_checks
    facts["passed_checks"] = sum(row["by"] == "program" and row["status"] == "passed" for row in facts["checks"])

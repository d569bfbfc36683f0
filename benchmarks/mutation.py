"""Mutation testing: one operator, comparison, boolean, constant or return changed at a time; does a test notice?

    python -m benchmarks.mutation [--sample N] [--seed S] [--only dptrain/plan.py,…] [--until HH:MM] [--tables]

Each mutant is made in memory and runs against the tests of its own module (:data:`TESTS`) in a forked child, in
which torch and the other libraries are imported already. Verdicts are appended to `results/mutation_verdicts.jsonl`:
a run that was stopped goes on where it was; a verdict holds until the mutated function changes, that of a survivor
until its tests change too. A mutant counts as killed only where the test that failed passes without it. Survivors
that change nothing are listed with the reason in `mutation_accepted.json`. Writes results/mutation.json and .md.

Not mutated: texts, type hints, decorators. Tests that start a process of their own see the unchanged code in it.

Why not mutmut or cosmic-ray: mutmut 3 leaves out module constants and decorated functions (properties, caches,
context managers, `no_grad`); cosmic-ray writes each mutant into the working tree and imports torch anew for it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import ctypes
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from benchmarks import _results

TOP = Path(__file__).parents[1]
ACCEPTED = Path(__file__).parent / "mutation_accepted.json"
VERDICTS = _results.RESULTS / "mutation_verdicts.jsonl"

CPU_SECONDS, WALL_SECONDS = 300, 900
"""What one mutant may take. The slowest module's tests take a third of the first on an idle machine."""

ENGINE = ["test_noise", "test_norms", "test_exact_math", "test_clipping", "test_sensitivity", "test_layers"]
LEDGER = ["test_members", "test_life", "test_model", "test_attack", "test_approvals", "test_stores", "test_tamper"]


def _tests(folder: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"tests/{folder}/{name}.py" for name in names)


TESTS: dict[str, tuple[str, ...]] = {
    "dptrain/plan.py": (
        "tests/test_plan.py",
        "tests/accounting/test_gaussian.py",
        "tests/training/test_sweep_plan.py",
    ),
    "dptrain/cells.py": ("tests/test_cells.py",),
    "dptrain/randomness.py": ("tests/data/test_sampling.py", "tests/engine/test_noise.py"),
    "dptrain/accounting/_checks.py": _tests("accounting", ["test_gaussian", "test_losses", "test_renyi"]),
    "dptrain/accounting/attacks.py": _tests("accounting", ["test_attacks"]),
    "dptrain/accounting/budgets.py": _tests("accounting", ["test_budgets", "test_units"]),
    "dptrain/accounting/gaussian.py": _tests("accounting", ["test_gaussian", "test_losses", "test_renyi"]),
    "dptrain/accounting/losses.py": _tests("accounting", ["test_losses", "test_trials"]),
    "dptrain/accounting/noise.py": _tests("accounting", ["test_noise", "test_losses"]),
    "dptrain/accounting/renyi.py": _tests("accounting", ["test_renyi"]),
    "dptrain/accounting/trials.py": _tests("accounting", ["test_trials"]),
    "dptrain/accounting/units.py": _tests("accounting", ["test_units", "test_budgets"]),
    "dptrain/engine/bounds.py": _tests("engine", ["test_clipping", "test_sensitivity"]),
    "dptrain/engine/chunks.py": _tests("engine", ["test_chunks", "test_sensitivity", "test_clipping"]),
    "dptrain/engine/gradients.py": _tests("engine", [*ENGINE, "test_odd_networks"]),
    "dptrain/engine/layout.py": _tests("engine", ["test_clipping", "test_layers", "test_odd_networks"]),
    "dptrain/engine/noise.py": _tests("engine", ["test_noise"]),
    "dptrain/engine/optimizer.py": _tests("engine", ["test_noise", "test_clipping"]),
    "dptrain/engine/sums.py": _tests("engine", ["test_clipping", "test_sensitivity", "test_layers"]),
    "dptrain/data/loading.py": (
        *_tests("data", ["test_sampling", "test_with_ledger", "test_formats"]),
        "tests/training/test_odd_patients.py",
    ),
    "dptrain/ledger/charges.py": _tests("ledger", LEDGER),
    "dptrain/ledger/gate.py": _tests("ledger", LEDGER),
    "dptrain/ledger/members.py": _tests("ledger", LEDGER),
    "dptrain/ledger/rules.py": _tests("ledger", LEDGER),
    "dptrain/ledger/state.py": _tests("ledger", LEDGER),
}
"""A module's tests, those that are likeliest to notice first."""

LIBRARIES = (
    *("torch", "torch.func", "opacus", "monai", "numpy", "scipy.stats", "scipy.special", "scipy.optimize"),
    *("sqlalchemy", "sqlalchemy.orm", "alembic.command", "cryptography.hazmat.primitives.asymmetric.ed25519"),
    *("dp_accounting", "dp_accounting.pld.privacy_loss_distribution", "hypothesis", "hypothesis.strategies"),
    *(
        "hypothesis.extra.numpy",
        "mpmath",
        "randomgen",
        "pydicom",
        "nibabel",
        "hydra",
        "omegaconf",
        "PIL.Image",
        "yaml",
        "rich.console",
    ),
)
"""Imported once, before the first fork; nothing of the package itself."""

# ── Mutants ───────────────────────────────────────────────────────────────────────────────────────

COMPARISONS: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.MatMult: ast.Mult,
}  # fmt: skip
PAIRS = (("min", "max"), ("ceil", "floor"), ("any", "all"))
FUNCTIONS: Mapping[str, str] = {**dict(PAIRS), **{second: first for first, second in PAIRS}}


@dataclass(frozen=True)
class Mutant:
    """One change of one node.

    Attributes:
        file: of the repository.
        line: of the node.
        place: qualified name of the function or class it lies in, or "<module>".
        change: the node, or what it is part of, before and after; two of the same in one place are numbered.
        node: the node's number in `ast.walk`.
        edit: which of the node's changes.
        around: digest of the outermost function or class it lies in, or of the statement.
    """

    file: str
    line: int
    place: str
    change: str
    node: int
    edit: int
    around: str

    @property
    def name(self) -> str:
        """What identifies it, wherever its line moves."""
        return f"{self.file}:{self.place}: {self.change}"


def edits(node: ast.AST) -> list[ast.AST]:
    """The nodes that may stand in this one's place; none where it isn't mutated."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare():
            changed: list[ast.AST] = []
            for place, operator in enumerate(new.ops):
                other = copy.deepcopy(new)
                other.ops[place] = COMPARISONS[type(operator)]()
                changed.append(other)
            return changed
        case ast.BoolOp():
            new.op = ast.Or() if isinstance(new.op, ast.And) else ast.And()
        case ast.BinOp() if not _text(new.left) and not _text(new.right):
            new.op = OPERATORS[type(new.op)]()
        case ast.AugAssign() if not _text(new.value):
            new.op = OPERATORS[type(new.op)]()
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return [new.operand]
        case ast.Constant(value=bool(value)):
            new.value = not value
        case ast.Constant(value=int(value)):
            new.value = value + 1
        case ast.Constant(value=float(value)):
            new.value = 2 * value if value else 1.0
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            new.value = ast.Constant(None)
        case ast.If(test=ast.Name() | ast.Call() | ast.Attribute() | ast.Subscript()):
            new.test = ast.UnaryOp(ast.Not(), new.test)
        case ast.IfExp(test=ast.Name() | ast.Call() | ast.Attribute() | ast.Subscript()):
            new.test = ast.UnaryOp(ast.Not(), new.test)
        case ast.Name(id=name, ctx=ast.Load()) if name in FUNCTIONS:
            new.id = FUNCTIONS[name]
        case ast.Attribute(attr=name, value=ast.Name(id="math")) if name in FUNCTIONS:
            new.attr = FUNCTIONS[name]
        case _:
            return []
    return [new]


def _text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def mutants(file: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    tree = ast.parse((TOP / file).read_text())
    numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
    seen: Counter[str] = Counter()
    made: list[Mutant] = []
    for node, parents in _mutable(tree, ()):
        for edit, new in enumerate(edits(node)):
            names = [p.name for p in parents if isinstance(p, ast.FunctionDef | ast.ClassDef)]
            change = _change(node, new, parents)
            place = ".".join(names) or "<module>"
            seen[place + change] += 1
            change += f" #{seen[place + change]}" if seen[place + change] > 1 else ""
            outer = hashlib.sha256(ast.dump(parents[1] if len(parents) > 1 else node).encode()).hexdigest()[:16]
            made.append(Mutant(file, getattr(node, "lineno", 0), place, change, numbers[id(node)], edit, outer))
    return sorted(made, key=lambda mutant: (mutant.line, mutant.node, mutant.edit))


def _mutable(node: ast.AST, parents: tuple[ast.AST, ...]) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    yield node, parents
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list") or isinstance(value, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield from _mutable(child, (*parents, node))


def _change(old: ast.AST, new: ast.AST, parents: tuple[ast.AST, ...]) -> str:
    """The change in words: of the whole expression where the node is only a number or a name in it."""
    if isinstance(old, ast.If):
        return f"if {ast.unparse(old.test)} ⇒ if {ast.unparse(new.test)}"  # type: ignore[attr-defined]
    before = parents[-1] if isinstance(old, ast.Constant | ast.Name | ast.Attribute) else old
    if isinstance(before, ast.FunctionDef | ast.ClassDef | ast.Module | ast.arguments):
        before = old
    after = copy.deepcopy(before, {id(old): new}) if before is not old else new
    return f"{_line(before)} ⇒ {_line(after)}"


def _line(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 160 else text[:159] + "…"


def code_of(mutant: Mutant) -> CodeType:
    """The mutated module, compiled; lines are those of the file."""
    path = TOP / mutant.file
    tree = ast.parse(path.read_text())
    node = list(ast.walk(tree))[mutant.node]
    new = edits(node)[mutant.edit]

    class Change(ast.NodeTransformer):
        def visit(self, visited: ast.AST) -> Any:
            return ast.copy_location(new, node) if visited is node else self.generic_visit(visited)

    return compile(ast.fix_missing_locations(Change().visit(tree)), str(path), "exec")


# ── Running one ───────────────────────────────────────────────────────────────────────────────────


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the mutated code where its module is imported."""

    def __init__(self, mutant: Mutant) -> None:
        self.module = mutant.file.removesuffix(".py").replace("/", ".")
        self.path, self.code = TOP / mutant.file, code_of(mutant)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, module.__dict__)


class FirstFailure:
    """Remembers which test failed first."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.name = self.name or report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.name = self.name or report.nodeid


def _child(mutant: Mutant | None, tests: Sequence[str], answer: Path) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a run that is stopped leaves no child behind
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    import hypothesis

    hypothesis.settings.register_profile("mutation", database=None, deadline=None)
    hypothesis.settings.load_profile("mutation")
    first = FirstFailure()
    if mutant is not None:
        sys.meta_path.insert(0, Mutated(mutant))
    with tempfile.TemporaryDirectory() as folder:
        words = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--basetemp={folder}/t", *tests]
        code = int(pytest.main(words, plugins=[first]))
    answer.write_text(json.dumps({"code": code, "test": first.name}))
    os._exit(0)


def run_tests(mutant: Mutant | None, tests: Sequence[str]) -> tuple[str, str]:
    """Runs tests with a mutant, or without any, in a forked child.

    Returns:
        "passed", "failed" or "timeout", and the first test that failed. A child that dies has failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        child = multiprocessing.get_context("fork").Process(target=_child, args=(mutant, tests, answer))
        child.start()
        child.join(WALL_SECONDS)
        late = child.is_alive() or child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid or 0, signal.SIGKILL)
        child.join()
        if late:
            return "timeout", ""
        if not answer.exists():
            return "failed", ""
        said = json.loads(answer.read_text())
        return ("passed" if said["code"] == 0 else "failed"), said["test"]


# ── Verdicts ──────────────────────────────────────────────────────────────────────────────────────


def digest(files: Sequence[str]) -> str:
    """Of files' contents, in order."""
    return hashlib.sha256(b"\0".join((TOP / file).read_bytes() for file in files)).hexdigest()[:16]


def verdicts() -> dict[str, dict[str, Any]]:
    """The last verdict on each mutant by its name."""
    lines = VERDICTS.read_text().splitlines() if VERDICTS.exists() else []
    return {row["mutant"]: row for row in map(json.loads, lines)}


def stands(mutant: Mutant, row: Mapping[str, Any] | None) -> bool:
    """Whether a verdict still holds for the code and tests of now."""
    if row is None or row["around"] != mutant.around:
        return False
    return row["verdict"] != "survived" or row["tests"] == digest(TESTS[mutant.file])


class Runner:
    """Judges mutants, and the tests that kill them."""

    def __init__(self) -> None:
        self.sound: dict[str, bool] = {}

    def is_sound(self, test: str, tests: Sequence[str]) -> bool:
        """Whether the test that failed passes without a mutant; all the tests, where none is named."""
        if test not in self.sound:
            self.sound[test] = run_tests(None, [test] if test else tests)[0] == "passed"
        return self.sound[test]

    def judge(self, mutant: Mutant) -> dict[str, Any]:
        """One row of the verdicts."""
        tests, start = TESTS[mutant.file], time.monotonic()
        outcome, test = run_tests(mutant, tests)
        if outcome == "failed" and not self.is_sound(test, tests):
            raise SystemExit(f"{test or tests} fails without any mutant: mend it first")
        verdict = {"passed": "survived", "failed": "killed", "timeout": "timeout"}[outcome]
        row = {"mutant": mutant.name, "verdict": verdict, "by": test, "seconds": round(time.monotonic() - start, 1)}
        return row | {"around": mutant.around, "tests": digest(tests)}


def accepted() -> dict[str, str]:
    """Survivors that change nothing, by name, each with the reason."""
    return {row["mutant"]: row["reason"] for row in json.loads(ACCEPTED.read_text())}


# ── The table ─────────────────────────────────────────────────────────────────────────────────────


COUNTED = ("module", "mutants", "sampled", "killed", "timeout", "survived")


def tables(command: str) -> None:
    """Writes the table from all verdicts that still hold."""
    rows, survivors, reasons = [], [], accepted()
    judged = verdicts()
    for file in TESTS:
        every = mutants(file)
        same = [m for m in every if judged.get(m.name, {}).get("around") == m.around]  # survivors until judged again
        stand = {m.name: judged[m.name]["verdict"] for m in same}
        counts = Counter(stand.values())
        alive = [m for m in every if stand.get(m.name) == "survived"]
        nothing = sum(m.name in reasons for m in alive)
        rows.append(_row(file, len(every), len(stand), counts, nothing))
        survivors += alive
    rows.append({key: sum(row[key] for row in rows) for key in rows[0] if key not in ("module", "noticed %")})
    rows[-1]["module"] = "all"
    rows[-1]["noticed %"] = _share(rows[-1])
    _results.write(
        "mutation",
        rows,
        command=command,
        table_columns=(*COUNTED, "change nothing", "noticed %"),
        title="Mutation testing: would a test notice?",
        notes=_notes(rows[-1], survivors, reasons),
    )


def _row(file: str, every: int, sampled: int, counts: Mapping[str, int], nothing: int) -> dict[str, Any]:
    row = {"module": file, "mutants": every, "sampled": sampled}
    row |= {verdict: counts.get(verdict, 0) for verdict in COUNTED[3:]} | {"change nothing": nothing}
    return row | {"noticed %": _share(row)}


def _share(row: Mapping[str, Any]) -> float | None:
    """Killed and timed out, of the sampled mutants that change something, in percent."""
    of = row["sampled"] - row["change nothing"]
    return round(100 * (row["killed"] + row["timeout"]) / of, 1) if of else None


def _notes(total: Mapping[str, Any], survivors: Sequence[Mutant], reasons: Mapping[str, str]) -> str:
    lines = [
        f"Sampled: {total['sampled']} of {total['mutants']} mutants. *noticed %*: killed or timed out, of those "
        "sampled that change something. Survivors may have been answered with new tests since, and count by their "
        "last verdict: the share is that of the mutants looked at, no estimate for the others.",
        "",
        "## Survivors",
        "",
    ]
    for mutant in survivors:
        why = f" — changes nothing: {reasons[mutant.name]}" if mutant.name in reasons else ""
        lines.append(f"- `{mutant.file}:{mutant.line}` {mutant.place}: `{mutant.change}`{why}")
    return "\n".join(lines if survivors else [*lines, "None."])


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sample", type=int, help="how many mutants, drawn at random; all where left out")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="files of dptrain, with commas between them; all where left out")
    parser.add_argument("--until", default="", help="HH:MM after which no further mutant is begun")
    parser.add_argument("--survivors", action="store_true", help="only those that survived last")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the table")
    args = parser.parse_args(words)
    files = args.only.split(",") if args.only else list(TESTS)
    if unknown := set(files) - set(TESTS):
        parser.error(f"{', '.join(sorted(unknown))}: not in the table; one of {', '.join(TESTS)}")
    chosen = [mutant for file in files for mutant in mutants(file)]
    random.Random(args.seed).shuffle(chosen)
    chosen = chosen[: args.sample]
    if args.survivors:
        last = verdicts()
        chosen = [m for m in chosen if last.get(m.name, {}).get("verdict") == "survived"]
    if not args.tables:
        run(chosen, args.until)
    tables(_results.command_of("mutation", sys.argv[1:] if words is None else words))
    return 0


def run(chosen: Sequence[Mutant], until: str) -> None:
    """Judges the mutants that have no verdict yet, and appends each verdict."""
    os.chdir(TOP)
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    if mine := [name for name in sys.modules if name.split(".")[0] == "dptrain"]:
        raise SystemExit(f"imported before the first fork, so no mutant would be seen: {', '.join(mine)}")
    runner, judged = Runner(), verdicts()
    for number, mutant in enumerate(chosen, 1):
        if until and datetime.now().strftime("%H:%M") >= until:
            break
        if stands(mutant, judged.get(mutant.name)):
            continue
        row = runner.judge(mutant)
        with VERDICTS.open("a") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        progress = f"{number}/{len(chosen)} {row['verdict']:8} {row['seconds']:6} s"
        print(f"{progress}  line {mutant.line} of {mutant.name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

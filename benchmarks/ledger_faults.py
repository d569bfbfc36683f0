"""Faults that the ledger must survive, counted: `python -m benchmarks.ledger_faults [kills=10000 …]`.

After each fault: what was charged is at least what was released, the chain verifies, the next run works.

- kills: SIGKILL at a random moment of a process that reserves, pays lease by lease and closes, over and over;
- races: 16 processes ask at once for what only some of them can get;
- disk: every single write, sync, truncation and deletion of every operation fails (full, I/O error, power loss
  with a torn write);
- server: a PostgreSQL server loses its backends to SIGKILL in mid-transaction, and recovers.

Counts are kept in the results file after every batch; with `resume=yes` a later call goes on where this one ended,
so that a partial count is an honest one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import _results
from benchmarks._faulty_disk import AVAILABLE, MODES, faulty_disk
from benchmarks._ledger_site import (
    COHORT,
    PASSPHRASE,
    Postgres,
    Site,
    epsilon_for,
    have_postgres,
    make_site,
    people,
    small_plan,
)
from dptrain.errors import LedgerRefused
from dptrain.ledger import Keys, Ledger
from dptrain.ledger.charges import charge_of
from dptrain.words import Word, parse_words

MANY_RUNS = 60_000.0  # a budget that a batch of kills never exhausts
EVENT = struct.Struct("<c20si")


class Violation(AssertionError):
    """Something that must never happen."""


# -- SIGKILL at random points -------------------------------------------------------------------------------------


def kill_rounds(site: Site, rounds: int, rng: random.Random) -> dict[str, int]:
    """Kill a working process `rounds` times; returns counts. Raises Violation.

    The child tells by pipe what it may release: steps below `through`, only after commit() has returned. It is
    killed at a random moment of a random one of its operations. The parent then reads the ledger as another program
    would, resumes what died, and goes on with it.
    """
    counts = {"kills": 0, "in_reserve": 0, "in_commit": 0, "in_close": 0, "released": 0, "closed": 0, "resumed": 0}
    ledger = site.again()
    _one_run(site, ledger, lambda *_: None)  # the accounting is warm in every child
    begun, operations = time.monotonic(), 6
    _one_run(site, ledger, lambda *_: None)
    one = (time.monotonic() - begun) / operations
    for _ in range(rounds):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _tell(writer, b"b", "", 0)
            _work(site, ledger, writer)
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            data = b"".join(_exactly(pipe, EVENT.size) for _ in range(1 + rng.randrange(2 * operations)))
            time.sleep(rng.uniform(0, 1.2 * one))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            events = _events(data + pipe.read())
        counts["kills"] += 1
        counts[_hit(events[-1], site.plan.steps)] += 1
        _check_events(site, ledger, events[1:], counts)
    faults = site.again().verify()
    if faults:
        raise Violation(f"the chain does not verify: {faults[0]}")
    ledger.close()
    return counts


def _exactly(pipe: Any, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := pipe.read(size - len(data))):
        data += more
    return data


def _hit(last: tuple[bytes, str, int], steps: int) -> str:
    """The operation that the process was in when it was killed: the one after the last that it told of."""
    kind, _, through = last
    if kind in (b"b", b"x"):
        return "in_reserve"
    return "in_close" if kind == b"c" and through == steps else "in_commit"


def _one_run(site: Site, ledger: Ledger, tell: Callable[[bytes, str, int], None]) -> None:
    """Reserve, pay lease by lease, close; each step is told after it has returned."""
    name = os.urandom(10).hex()
    grant = ledger.reserve(site.plan, COHORT, run=name, fingerprint=site.fingerprint, lease=3)
    tell(b"r", name, 0)
    while grant.committed < site.plan.steps:
        grant.commit(min(site.plan.steps, grant.committed + grant.lease))
        tell(b"c", name, grant.committed)
    grant.close("complete", site.plan.steps)
    tell(b"x", name, site.plan.steps)


def _work(site: Site, ledger: Ledger, writer: int) -> None:
    """The child: runs, one after the other, until it is killed. Never returns."""
    try:
        while True:
            _one_run(site, ledger, lambda *event: _tell(writer, *event))
    except BaseException as error:
        os.write(2, f"child: {error!r}\n".encode())
        os._exit(1)


def _tell(writer: int, kind: bytes, name: str, step: int) -> None:
    os.write(writer, EVENT.pack(kind, name.encode(), step))


def _events(data: bytes) -> list[tuple[bytes, str, int]]:
    whole = len(data) - len(data) % EVENT.size
    return [(kind, name.rstrip(b"\0").decode(), step) for kind, name, step in EVENT.iter_unpack(data[:whole])]


def _check_events(site: Site, ledger: Ledger, events: list[tuple[bytes, str, int]], counts: dict[str, int]) -> None:
    with ledger.view() as (_, state):  # checks the place, hash and signatures of every new entry
        runs = dict(state.runs)
    for kind, name, through in events:
        run = runs.get(name)
        if run is None:
            raise Violation(f"run {name} was granted and is not in the ledger")
        if run.committed < through or run.steps_charged < through:
            raise Violation(f"run {name} released {through} steps; only {run.committed} are paid")
        counts["released"] += kind == b"c"
        if kind == b"x":
            counts["closed"] += 1
            if run.status != "complete":
                raise Violation(f"run {name} was closed and is not")
    for name in [run.id for run in runs.values() if run.status == "open"]:
        committed = runs[name].committed
        try:
            grant = ledger.resume(name)
        except LedgerRefused:
            if ledger.run(name).status == "complete":
                continue  # a server's backend finished what its killed client had sent
            raise
        if grant.committed < committed:
            raise Violation(f"run {name} was resumed at {grant.committed}, before the {committed} that are paid")
        grant.commit(site.plan.steps)
        grant.close("complete", site.plan.steps)
        counts["resumed"] += 1


# -- races --------------------------------------------------------------------------------------------------------


class Racers:
    """Processes that wait for the start and then all reserve at once. Forked; use before any thread starts."""

    def __init__(self, site: Site, count: int = 16) -> None:
        self.site, self.count = site, count
        context = multiprocessing.get_context("fork")
        self.gate = context.Barrier(count + 1)
        self.orders = [context.SimpleQueue() for _ in range(count)]
        self.answers: Any = context.SimpleQueue()
        self.workers = [context.Process(target=self._race, args=(number,), daemon=True) for number in range(count)]
        for worker in self.workers:
            worker.start()

    def _race(self, number: int) -> None:
        ledger = self.site.again()
        while (order := self.orders[number].get()) is not None:
            cohort, name = order
            self.gate.wait()
            try:
                grant = ledger.reserve(self.site.plan, cohort, run=name, fingerprint=self.site.fingerprint)
                grant.commit(self.site.plan.steps)
                self.answers.put((name, "granted"))
            except LedgerRefused as error:
                self.answers.put((name, error.message.split("\n")[0]))
            except BaseException as error:
                self.answers.put((name, f"died: {error!r}"))
                raise

    def race(self, cohort: str) -> list[str]:
        """One race; returns the names of the winners. Raises Violation for a refusal of another kind."""
        for number, queue in enumerate(self.orders):
            queue.put((cohort, f"{cohort}-{number}"))
        self.gate.wait()
        answers = [self.answers.get() for _ in range(self.count)]
        for _, answer in answers:
            if answer != "granted" and "budget" not in answer:
                raise Violation(f"a racer was turned away for another reason: {answer}")
        return [name for name, answer in answers if answer == "granted"]

    def stop(self) -> None:
        """End the processes."""
        for queue in self.orders:
            queue.put(None)
        for worker in self.workers:
            worker.join(timeout=20)


def race_rounds(site: Site, rounds: int, rng: random.Random, *, count: int = 16) -> dict[str, int]:
    """Races for budgets that hold 1 to 5 runs; as many must win as fit, never more. Raises Violation."""
    counts = {"races": 0, "winners": 0}
    racers = Racers(site, count)
    patients = people(site.keys, 0, 20)
    ledger = site.again()
    try:
        for _ in range(rounds):
            name = f"race{os.urandom(4).hex()}"
            ledger.register(
                name, unit="patient", issuer="clinic", public_size=20, patients=patients, owner="Radiology"
            )
            budget = ledger.budget(
                name,
                epsilon=epsilon_for(site.plan, rng.choice([1.5, 1.01, 2.5, 5.2])),
                delta=site.plan.delta,
                forecast=site.plan.mechanisms,
                minimum_charge=0.0,
                reason="race",
                controller=site.controller,
            )
            cost = charge_of(site.plan.mechanisms).at(budget.order_index, site.plan.steps)
            winners = racers.race(name)
            if len(winners) != min(count, budget.units // cost):
                raise Violation(f"{len(winners)} of {count} won where {budget.units // cost} fit")
            if ledger.status(name).spent_epsilon > budget.epsilon:
                raise Violation("more was spent than granted")
            counts["races"] += 1
            counts["winners"] += len(winners)
    finally:
        racers.stop()
    faults = site.again().verify()
    if faults:
        raise Violation(f"the chain does not verify: {faults[0]}")
    return counts


# -- failing disks ------------------------------------------------------------------------------------------------


def disk_rounds(folder: Path, keys: Keys, *, modes: Sequence[str] = MODES, thin: int = 1) -> dict[str, int]:
    """Fail each disk operation of each ledger operation once, in each mode; returns counts. Raises Violation.

    Args:
        thin: try only every so many-th disk operation.
    """
    counts = {"faults": 0, "refused": 0, "went_through": 0}
    controller = keys.controller(PASSPHRASE)
    original = folder / "original.sqlite"
    site = make_site(str(original), keys, controller, runs=50)
    before = site.ledger.reserve(site.plan, COHORT, run="before", fingerprint=site.fingerprint)
    before.commit(3)
    site.ledger.close()
    copy = folder / "copy.sqlite"
    for name, act in _acts(site).items():
        for mode in modes:
            number = 1
            while True:
                shutil.copyfile(original, copy)
                Path(f"{copy}-journal").unlink(missing_ok=True)
                refused, failed, entries = False, False, 0
                with faulty_disk(number, mode) as disk:
                    ledger = Ledger(copy, keys, witness=None, wait=5.0)
                    try:
                        act(ledger)
                    except LedgerRefused as error:
                        refused = True
                        if "\n" in error.message:
                            raise Violation(f"{name}: more than a sentence: {error.message}") from None
                    failed = disk.failed
                    ledger.close()
                after = Ledger.open(copy, keys)
                entries = after.head().entries
                base = 5
                if not refused and entries != base + 1:
                    raise Violation(f"{name}, {mode} at {number}: it succeeded and is not in the ledger")
                if entries not in (base, base + 1):
                    raise Violation(f"{name}, {mode} at {number}: {entries} entries")
                if faults := after.verify():
                    raise Violation(f"{name}, {mode} at {number}: {faults[0]}")
                grant = after.reserve(site.plan, COHORT, run="next", fingerprint=site.fingerprint)
                grant.commit(site.plan.steps)
                grant.close("complete", site.plan.steps)
                after.close()
                if not failed:
                    break
                counts["faults"] += 1
                counts["refused"] += refused
                counts["went_through"] += not refused
                number += thin
    return counts


def _acts(site: Site) -> dict[str, Callable[[Ledger], object]]:
    def commit(ledger: Ledger) -> None:
        _held(ledger).commit(6)

    def close(ledger: Ledger) -> None:
        _held(ledger).close("complete", 3)

    return {
        "reserve": lambda ledger: ledger.reserve(site.plan, COHORT, run="new", fingerprint=site.fingerprint),
        "commit": commit,
        "close": close,
        "resume": lambda ledger: ledger.resume("before"),
        "register": lambda ledger: ledger.register(
            "other", unit="patient", issuer="clinic", public_size=9, patients=people(site.keys, 10, 400), owner="R"
        ),
        "budget": lambda ledger: ledger.budget(
            COHORT, epsilon=9.0, delta=1e-3, forecast=(), reason="more", controller=site.controller
        ),
        "withdraw": lambda ledger: ledger.withdraw(site.keys.patient_key("clinic", "3")),
    }


def _held(ledger: Ledger) -> Any:
    """The grant of the run `before` as its own process holds it."""
    from dptrain.ledger import Grant, rules
    from dptrain.plan import Plan

    with ledger.view() as (_, state):
        run = state.runs["before"]
        return Grant(
            ledger,
            id=run.seq,
            version=state.version_of(run),
            run=run.id,
            purpose="train",
            plan=Plan.from_dict(run.plan),
            excluded=frozenset(),
            committed=run.committed,
            lease=run.lease,
            attempt=run.attempt,
            inherited=(),
            gate=rules.gate_facts(state, run.cohort),
            basis="budget",
        )


# -- a server that dies -------------------------------------------------------------------------------------------


def server_rounds(server: Postgres, site: Site, rounds: int, rng: random.Random) -> dict[str, int]:
    """Kill the server's backends under a working client; returns counts. Raises Violation."""
    counts = {"kills": 0, "errors": 0, "released": 0}
    for _ in range(rounds):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work_through_crashes(site, writer)
        os.close(writer)
        time.sleep(rng.uniform(0.1, 0.3))
        for backend in server.backends():
            try:
                os.kill(backend, signal.SIGKILL)
                counts["kills"] += 1
            except ProcessLookupError:
                continue
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as pipe:
            events = _events(pipe.read())
        counts["errors"] += sum(kind == b"e" for kind, _, _ in events)
        ledger = _patiently(site)
        checked = {"released": 0, "closed": 0, "resumed": 0}
        _check_events(site, ledger, [event for event in events if event[0] != b"e"], checked)
        counts["released"] += checked["released"]
        ledger.close()
    ledger = _patiently(site)
    if faults := ledger.verify():
        raise Violation(f"the chain does not verify: {faults[0]}")
    return counts


def _work_through_crashes(site: Site, writer: int) -> None:
    """The child: as :func:`_work`, opening the ledger again after each error. Never returns."""
    while True:
        try:
            ledger = Ledger(site.place, site.keys, witness=None, wait=5.0)
            while True:
                _one_run(site, ledger, lambda *event: _tell(writer, *event))
        except LedgerRefused:
            _tell(writer, b"e", "", 0)
            time.sleep(0.02)
        except BaseException as error:
            os.write(2, f"child: {error!r}\n".encode())
            os._exit(1)


def _patiently(site: Site, seconds: float = 30.0) -> Ledger:
    """Open the ledger as soon as the server has recovered."""
    end = time.monotonic() + seconds
    while True:
        try:
            return site.again()
        except LedgerRefused:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


# -- the count ----------------------------------------------------------------------------------------------------


@contextmanager
def place_of(store: str, server: Postgres | None) -> Iterator[tuple[str, Path]]:
    """A fresh place for a ledger, and a folder beside it."""
    with tempfile.TemporaryDirectory(prefix="dptrain-ledger-") as name:
        if server is None:
            yield str(Path(name) / "ledger.sqlite"), Path(name)
            return
        url = server.database()
        try:
            yield url, Path(name)
        finally:
            server.drop(url)


def main(argv: Sequence[str]) -> int:
    """Count; returns 1 where anything was violated."""
    values = parse_words(
        argv,
        {
            "kills": Word(int, "SIGKILLs on SQLite", 10_000),
            "kills_pg": Word(int, "SIGKILLs on PostgreSQL", 2_000),
            "races": Word(int, "races on each store", 1_000),
            "server": Word(int, "rounds of a PostgreSQL server whose backends are killed", 50),
            "disk": Word(int, "1: fail every disk operation; n: every n-th; 0: skip", 1),
            "batch": Word(int, "rounds on one ledger", 200),
            "seed": Word(int, "of the moments, not of anything secret", 0),
            "resume": Word(lambda text: text == "yes", "yes: go on with the counts of the results file", False),
            "folder": Word(Path, "where the results go", _results.RESULTS),
        },
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped again
    rows = _earlier(values["folder"]) if values["resume"] else {}
    command = " ".join(["python -m benchmarks.ledger_faults", *argv])
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="dptrain-keys-") as folder:
        keys = Keys.create(Path(folder) / "keys", PASSPHRASE)
        controller = keys.controller(PASSPHRASE)
        server = None
        if have_postgres() and (values["kills_pg"] or values["races"] or values["server"]):
            server = Postgres()
            stack.callback(server.stop)
        jobs: list[tuple[str, str, int]] = []
        if values["disk"] and AVAILABLE:
            jobs.append(("disk", "SQLite", 1))
        jobs += [("kill", "SQLite", values["kills"]), ("race", "SQLite", values["races"])]
        if server is not None:
            jobs += [("kill", "PostgreSQL", values["kills_pg"]), ("race", "PostgreSQL", values["races"])]
            jobs += [("server", "PostgreSQL", values["server"])]
        for fault, store, goal in jobs:
            row = rows.setdefault((fault, store), _new_row(fault, store))
            row["goal"] = goal
            while row["rounds"] < goal:
                todo = min(values["batch"], goal - row["rounds"])
                rng = random.Random(f"{values['seed']} {fault} {store} {row['rounds']}")
                begun = time.monotonic()
                with place_of(store, server if store == "PostgreSQL" else None) as (place, folder_now):
                    try:
                        counts, done = _batch(
                            fault, place, folder_now, keys, controller, server, todo, rng, values["disk"]
                        )
                    except Violation as violation:
                        counts, done = {}, todo
                        row["violations"] += 1
                        row["first_violation"] = row["first_violation"] or str(violation)
                row["rounds"] += done
                row["seconds"] = round(row["seconds"] + time.monotonic() - begun, 1)
                for name, count in counts.items():
                    row["events"][name] = row["events"].get(name, 0) + count
                _write(list(rows.values()), command, values["folder"])
                print(f"{fault} {store}: {row['rounds']} of {goal}, {row['violations']} violations", flush=True)
    return 1 if any(row["violations"] for row in rows.values()) else 0


def _batch(
    fault: str,
    place: str,
    folder: Path,
    keys: Keys,
    controller: Any,
    server: Postgres | None,
    todo: int,
    rng: random.Random,
    thin: int,
) -> tuple[dict[str, int], int]:
    if fault == "disk":
        return disk_rounds(folder, keys, thin=thin), todo
    if fault == "race":
        site = make_site(place, keys, controller)
        site.ledger.close()
        return race_rounds(site, todo, rng), todo
    site = make_site(place, keys, controller, runs=MANY_RUNS, plan=small_plan(noise_multiplier=4000.0))
    if fault == "kill":
        return kill_rounds(site, todo, rng), todo
    assert server is not None
    site.ledger.close()
    return server_rounds(server, site, todo, rng), todo


def _new_row(fault: str, store: str) -> dict[str, Any]:
    return {
        "fault": fault,
        "store": store,
        "rounds": 0,
        "goal": 0,
        "violations": 0,
        "first_violation": None,
        "seconds": 0.0,
        "events": {},
    }


def _earlier(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    path = folder / "ledger_faults.json"
    if not path.exists():
        return {}
    rows = {}
    for flat in json.loads(path.read_text())["rows"]:
        row = _new_row(flat["fault"], flat["store"])
        row.update({name: flat[name] for name in row if name != "events"})
        row["events"] = {name.removeprefix("n_"): count for name, count in flat.items() if name.startswith("n_")}
        rows[(row["fault"], row["store"])] = row
    return rows


def _write(rows: list[dict[str, Any]], command: str, folder: Path) -> None:
    flat = []
    for row in rows:
        events = row["events"]
        detail = ", ".join(f"{count} {name}" for name, count in events.items())
        plain = {name: value for name, value in row.items() if name != "events"}
        flat.append({**plain, **{f"n_{name}": count for name, count in events.items()}, "detail": detail})
    _results.write(
        "ledger_faults",
        flat,
        command=command,
        folder=folder,
        title="Faults that the ledger survived",
        table_columns=["fault", "store", "rounds", "goal", "violations", "seconds", "detail"],
        notes=(
            "After each fault: charged ≥ released, the chain verifies, the next run works. A row whose rounds are "
            "below its goal was stopped early. `disk` is one round: every disk operation of reserve, commit, close, "
            "resume, register, budget and withdraw fails once in each of three ways (full, I/O error, power loss "
            "with a torn write)."
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

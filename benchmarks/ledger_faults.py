"""Faults that the ledger must survive, counted: `python -m benchmarks.ledger_faults [kills=10000 …]`.

After each fault: what was charged is at least what was released, the chain verifies, the next run works.

- kill: SIGKILL at a random moment of a process that reserves, pays lease by lease and closes, over and over;
- race: 16 processes ask at once for what only some of them can get;
- clocks: two machines race whose clocks jump by years, back and forth, between any two entries;
- disk: every single write, sync, truncation and deletion of an operation fails (full, I/O error, power loss with a
  torn write);
- server: a PostgreSQL server dies while its client is in mid-transaction (its backends, or all of it at once), and
  recovers.

Most of the time is waiting for syncs, so several batches run side by side (`workers=…`), each on a ledger of its own.
Counts are kept in the results file after every batch; SIGTERM ends it after the batches that are under way, and with
`resume=yes` a later call goes on from there, so that a partial count is an honest one.
"""

from __future__ import annotations

import itertools
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
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
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
    postgres,
    small_plan,
)
from dptrain.errors import LedgerRefused
from dptrain.ledger import Keys, Ledger, chain
from dptrain.ledger.charges import charge_of
from dptrain.terminal.words import Word, parse_words

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
    """Processes that wait for the start and then all reserve at once. Forked; use before any thread starts.

    clocks: each has a clock of its own, which is never right and jumps before every entry.
    """

    def __init__(self, site: Site, count: int = 16, *, clocks: bool = False) -> None:
        self.site, self.count, self.clocks = site, count, clocks
        context = multiprocessing.get_context("fork")
        self.gate = context.Barrier(count + 1)
        self.orders = [context.SimpleQueue() for _ in range(count)]
        self.answers: Any = context.SimpleQueue()
        self.workers = [context.Process(target=self._race, args=(number,), daemon=True) for number in range(count)]
        for worker in self.workers:
            worker.start()

    def _race(self, number: int) -> None:
        if self.clocks:
            moments = random.Random(os.urandom(8))
            chain.utc_now = lambda: f"{moments.randrange(1970, 2100)}-{moments.randrange(1, 13):02}-01T00:00:00Z"  # type: ignore[attr-defined]
        ledger = self.site.again()
        while (order := self.orders[number].get()) is not None:
            cohort, name = order
            self.gate.wait()
            try:
                grant = ledger.reserve(self.site.plan, cohort, run=name, fingerprint=self.site.fingerprint)
                grant.commit(self.site.plan.steps // 2)
                grant.commit(self.site.plan.steps)
                if self.clocks:
                    grant.close()
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


def race_rounds(
    site: Site, rounds: int, rng: random.Random, *, count: int = 16, clocks: bool = False
) -> dict[str, int]:
    """Races for budgets that hold 1 to 5 runs; as many must win as fit, never more. Raises Violation."""
    counts = {"races": 0, "winners": 0}
    racers = Racers(site, count, clocks=clocks)
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
            fit = budget.units // cost
            if len(winners) != min(count, fit):
                raise Violation(f"{len(winners)} of {count} won where {fit} fit")
            status = ledger.status(name)
            if status.spent_epsilon > budget.epsilon:
                raise Violation("more was spent than granted")
            if sorted(run.run for run in status.runs) != sorted(winners):
                raise Violation("the ledger's runs are not those that won")
            counts["races"] += 1
            counts["winners"] += len(winners)
    finally:
        racers.stop()
    if clocks:
        times = [entry.time for entry in ledger.entries()]
        counts["set_back"] = sum(later < earlier for earlier, later in itertools.pairwise(times))
    faults = site.again().verify()
    if faults:
        raise Violation(f"the chain does not verify: {faults[0]}")
    return counts


# -- failing disks ------------------------------------------------------------------------------------------------


def disk_round(folder: Path, keys: Keys, operation: str, mode: str, *, thin: int = 1) -> dict[str, int]:
    """Fail each (or every `thin`-th) disk operation of one of :data:`OPERATIONS` once; returns counts.

    Raises Violation.
    """
    counts = {"faults": 0, "refused": 0, "went_through": 0}
    original, copy = folder / "original.sqlite", folder / "copy.sqlite"
    site = make_site(str(original), keys, keys.controller(PASSPHRASE), runs=50)
    before = site.ledger.reserve(site.plan, COHORT, run="before", fingerprint=site.fingerprint)
    before.commit(3)
    base = 0 if operation == "create" else site.ledger.head().entries
    site.ledger.close()
    number = 1
    while True:
        for name in (copy, Path(f"{copy}-journal")):
            name.unlink(missing_ok=True)
        if base:
            shutil.copyfile(original, copy)
        refused = False
        with faulty_disk(number, mode) as disk:
            ledger = Ledger(copy, keys, witness=None, wait=5.0)
            try:
                OPERATIONS[operation](ledger, site)
            except LedgerRefused as error:
                refused = True
                if "\n" in error.message:
                    raise Violation(f"{operation}: more than a sentence: {error.message}") from None
            failed = disk.failed
            ledger.close()
        _check_disk(copy, site, refused, base, f"{operation}, {mode} at {number}")
        if not failed:
            return counts
        counts["faults"] += 1
        counts["refused"] += refused
        counts["went_through"] += not refused
        number += thin


def _check_disk(copy: Path, site: Site, refused: bool, base: int, where: str) -> None:
    """The entry is there whole or not at all, the chain verifies, the next run works."""
    try:
        after = Ledger.open(copy, site.keys)
    except LedgerRefused:
        if base or not refused:
            raise
        Ledger.create(copy, site.keys).close()  # a foundation that died is simply done again
        return
    entries = after.head().entries
    if entries not in (base, base + 1):
        raise Violation(f"{where}: {entries} entries")
    if not refused and entries != base + 1:
        raise Violation(f"{where}: it succeeded and is not in the ledger")
    if faults := after.verify():
        raise Violation(f"{where}: {faults[0]}")
    if base:
        grant = after.reserve(site.plan, COHORT, run="next", fingerprint=site.fingerprint)
        grant.commit(site.plan.steps)
        grant.close("complete", site.plan.steps)
    after.close()


#: What a steward, a controller or a training does to a ledger, by name.
OPERATIONS: dict[str, Callable[[Ledger, Site], object]] = {
    "create": lambda ledger, site: Ledger.create(ledger.store.name, site.keys).close(),
    "reserve": lambda ledger, site: ledger.reserve(site.plan, COHORT, run="new", fingerprint=site.fingerprint),
    "commit": lambda ledger, site: _held(ledger).commit(6),
    "close": lambda ledger, site: _held(ledger).close("complete", 3),
    "resume": lambda ledger, site: ledger.resume("before"),
    "admit": lambda ledger, site: ledger.admit(
        COHORT, purpose="evaluate", run="before", fingerprint=site.fingerprint
    ),
    "register": lambda ledger, site: ledger.register(
        "other", unit="patient", issuer="clinic", public_size=9, patients=people(site.keys, 10, 400), owner="R"
    ),
    "budget": lambda ledger, site: ledger.budget(
        COHORT, epsilon=9.0, delta=1e-3, forecast=(), reason="more", controller=site.controller
    ),
    "permit": lambda ledger, site: ledger.permit("audit", COHORT, site.controller, reason="yearly"),
    "withdraw": lambda ledger, site: ledger.withdraw(site.keys.patient_key("clinic", "3")),
}


def _held(ledger: Ledger) -> Any:
    """The grant of the run `before` as its own process holds it."""
    from dptrain.ledger import Grant, charging, rules
    from dptrain.plan import Plan

    with ledger.view() as (_, state):
        run = state.runs["before"]
        return Grant(
            charging.Till(ledger),
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
    """Kill the server under a working client, mostly in mid-transaction; returns counts. Raises Violation.

    Odd rounds kill its backends, so that it recovers by itself; even ones the whole server, which is then started.
    """
    counts = {"servers": 0, "in_transaction": 0, "errors": 0, "released": 0}
    for number in range(rounds):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work_through_crashes(site, writer)
        os.close(writer)
        with os.fdopen(reader, "rb", buffering=0) as pipe:
            data = b"".join(_exactly(pipe, EVENT.size) for _ in range(1 + rng.randrange(20)))
            time.sleep(rng.uniform(0, 1.2 * PAUSE))
            server.kill(whole=number % 2 == 1)
            counts["servers"] += 1
            time.sleep(rng.uniform(0, 0.2))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            events = _events(data + pipe.read())
        server.start()
        kinds = b"".join(kind for kind, _, _ in events)
        counts["in_transaction"] += kinds.count(b"me") + kinds.endswith(b"m")
        counts["errors"] += kinds.count(b"e")
        ledger = _patiently(site)
        checked = {"released": 0, "closed": 0, "resumed": 0}
        _check_events(site, ledger, [event for event in events if event[0] in b"rcx"], checked)
        counts["released"] += checked["released"]
        ledger.close()
    ledger = _patiently(site)
    if faults := ledger.verify():
        raise Violation(f"the chain does not verify: {faults[0]}")
    return counts


PAUSE = 0.03  # seconds between an entry's writing and its commit


class _Paused(Ledger):
    """A ledger that tells when an entry is written and not yet committed, and waits there."""

    writer = -1

    def append(self, *args: Any, **more: Any) -> Any:
        entry = super().append(*args, **more)
        _tell(self.writer, b"m", "", 0)
        time.sleep(PAUSE)
        return entry


def _work_through_crashes(site: Site, writer: int) -> None:
    """The child: as :func:`_work`, opening the ledger again after each error. Never returns."""
    while True:
        try:
            ledger = _Paused(site.place, site.keys, witness=None, wait=5.0)
            ledger.writer = writer
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
def place_of(server: Postgres | None) -> Iterator[tuple[str, Path]]:
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


@dataclass(frozen=True)
class Job:
    """One batch, for a worker."""

    fault: str
    store: str
    rounds: int
    operation: str = ""
    mode: str = ""


ROUNDS: dict[str, Callable[..., dict[str, int]]] = {
    "kill": kill_rounds,
    "race": race_rounds,
    "clocks": lambda site, rounds, rng: race_rounds(site, rounds, rng, count=2, clocks=True),
}


@dataclass
class Worker:
    """What every worker has from its fork: keys cannot be sent."""

    keys: Keys
    server: Postgres | None
    thin: int


_worker: Worker | None = None


def _begin(worker: Worker) -> None:
    global _worker
    _worker = worker


def work(job: Job) -> tuple[dict[str, int], str | None, float]:
    """Do one batch on a fresh ledger; returns counts, the violation, and seconds."""
    assert _worker is not None
    keys, server = _worker.keys, _worker.server
    begun = time.monotonic()
    rng = random.Random(os.urandom(16))
    try:
        with ExitStack() as stack:
            if job.fault == "server":  # it dies, so it is nobody else's
                server = stack.enter_context(postgres())
            own = server if job.store == "PostgreSQL" else None
            place, folder = stack.enter_context(place_of(own))
            if job.mode:
                counts = disk_round(folder, keys, job.operation, job.mode, thin=_worker.thin)
            else:
                roomy = job.fault in ("kill", "server")
                plan = small_plan(noise_multiplier=4000.0) if roomy else None
                site = make_site(
                    place, keys, keys.controller(PASSPHRASE), runs=MANY_RUNS if roomy else 3.5, plan=plan
                )
                site.ledger.close()
                if job.fault == "server":
                    assert server is not None
                    counts = server_rounds(server, site, job.rounds, rng)
                else:
                    counts = ROUNDS[job.fault](site, job.rounds, rng)
        return counts, None, time.monotonic() - begun
    except Violation as violation:
        return {}, str(violation), time.monotonic() - begun


def jobs_of(goals: dict[tuple[str, str], int], rows: dict[tuple[str, str], dict[str, Any]], batch: int) -> list[Job]:
    """What is still to be done, in batches; those that take longest a round in smaller ones, and first."""
    jobs = []
    for (fault, store), goal in goals.items():
        row = rows.setdefault((fault, store), _new_row(fault, store))
        row["goal"] = goal
        if fault in DISK:
            todo = list(OPERATIONS) if row["rounds"] < goal else []
            if todo:
                rows[fault, store] = {**_new_row(fault, store), "goal": goal}  # these rounds are not alike: all again
            jobs += [Job(fault, store, 1, operation, DISK[fault]) for operation in todo]
            continue
        size = {"kill": batch, "server": max(1, batch // 10)}.get(fault, max(1, batch // 2))
        left = goal - row["rounds"]
        while left > 0:
            jobs.append(Job(fault, store, min(size, left)))
            left -= size
    return jobs


DISK = {"disk full": "full", "disk I/O error": "error", "power cut, torn write": "power"}
assert tuple(DISK.values()) == MODES


def main(argv: Sequence[str]) -> int:
    """Count; returns 1 where anything was violated."""
    values = parse_words(
        argv,
        {
            "kills": Word(int, "SIGKILLs on SQLite", 10_000),
            "kills_pg": Word(int, "SIGKILLs on PostgreSQL", 2_000),
            "races": Word(int, "races on each store", 1_000),
            "clocks": Word(int, "races of two machines with clocks apart, on each store", 200),
            "server": Word(int, "deaths of a PostgreSQL server in mid-transaction", 100),
            "disk": Word(int, "1: fail every disk operation; n: every n-th; 0: skip", 1),
            "batch": Word(int, "kills on one ledger", 100),
            "workers": Word(int, "batches at a time (they wait for syncs most of the time)", 4),
            "resume": Word(lambda text: text == "yes", "yes: go on with the counts of the results file", False),
            "folder": Word(Path, "where the results go", _results.RESULTS),
        },
    )
    rows = _earlier(values["folder"]) if values["resume"] else {}
    whole = rows.pop(("all", ""), {}).get("seconds", 0.0)
    command = _results.command_of("ledger_faults", argv)
    goals = {("server", "PostgreSQL"): values["server"], ("kill", "PostgreSQL"): values["kills_pg"]}
    goals |= {(fault, store): values[word] for store in ("SQLite", "PostgreSQL") for fault, word in RACES.items()}
    goals[("kill", "SQLite")] = values["kills"]
    if values["disk"] and AVAILABLE:
        goals |= {(fault, "SQLite"): len(OPERATIONS) for fault in DISK}
    goals = {key: goal for key, goal in goals.items() if goal and (key[1] == "SQLite" or have_postgres())}
    jobs = jobs_of(goals, rows, values["batch"])
    random.Random(0).shuffle(jobs)  # what waits for syncs and what computes run side by side
    begun = time.monotonic()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dptrain-keys-"))
        keys = Keys.create(Path(folder) / "keys", PASSPHRASE)
        server = stack.enter_context(postgres()) if any(job.store == "PostgreSQL" for job in jobs) else None
        forked = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(
            values["workers"], forked, initializer=_begin, initargs=(Worker(keys, server, values["disk"]),)
        )
        stack.callback(pool.shutdown, cancel_futures=True)
        running = {pool.submit(work, job): job for job in jobs}
        signal.signal(signal.SIGTERM, lambda *_: [future.cancel() for future in running])  # those begun still count
        for done, future in enumerate(as_completed(running), 1):
            if future.cancelled():
                continue
            job, (counts, violation, seconds) = running[future], future.result()
            row = rows[job.fault, job.store]
            row["rounds"] += job.rounds
            row["seconds"] = round(row["seconds"] + seconds, 1)
            row["violations"] += violation is not None
            row["first_violation"] = row["first_violation"] or violation
            for name, count in counts.items():
                row["events"][name] = row["events"].get(name, 0) + count
            _write(list(rows.values()), whole + time.monotonic() - begun, command, values["folder"])
            print(f"{done}/{len(jobs)} {job.fault} {job.store}: {row['rounds']} of {row['goal']}", flush=True)
    return 1 if any(row["violations"] for row in rows.values()) else 0


RACES = {"race": "races", "clocks": "clocks"}  # fault -> word


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


def file_system() -> str:
    """The kind of file system that temporary files are on (TMPDIR chooses another)."""
    folder, best = Path(tempfile.gettempdir()).resolve(), ("", "an unknown file system")
    with suppress(OSError, ValueError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, kind, *_ = line.split()
            if folder.is_relative_to(point):
                best = max(best, (point, kind))
    return best[1]


def _write(rows: list[dict[str, Any]], whole: float, command: str, folder: Path) -> None:
    total = {
        **_new_row("all", ""),
        **{name: sum(row[name] for row in rows) for name in ("rounds", "goal", "violations")},
        "seconds": round(whole, 1),
    }
    flat = []
    for row in (*sorted(rows, key=lambda row: (row["store"] == "PostgreSQL", row["fault"])), total):
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
            "below its goal was stopped early. `seconds` are of the worker that did the row, waiting included; "
            "workers run side by side, and the last row is the time by the clock on the wall. The ledgers lay on "
            f"{file_system()}; load average at the end {os.getloadavg()[1]:.0f}. A round of the three "
            f"rows about disks is one operation ({', '.join(OPERATIONS)}) of which every write, sync, truncation and "
            "deletion fails once."
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

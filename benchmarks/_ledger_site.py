"""A small site for benchmarks and tests of the ledger: keys, a ledger on either store, a cohort, a budget."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptrain import accounting
from dptrain.ledger import Controller, Keys, Ledger, fingerprint
from dptrain.ledger.approvals import Approval, Decision
from dptrain.ledger.charges import charge_of
from dptrain.ledger.signing import Signer
from dptrain.ledger.state import State
from dptrain.plan import Plan

PASSPHRASE = "correct horse battery"
COHORT = "chest"


def small_plan(**changes: object) -> Plan:
    """A plan that is cheap to account: 10 full-batch steps."""
    values: dict[str, object] = {
        "public_size": 20,
        "expected_batch_size": 20,
        "steps": 10,
        "noise_multiplier": 8.0,
        "max_grad_norm": 1.0,
        "delta": 1e-3,
        "declares": ("evaluate",),
    }
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


def people(keys: Keys, first: int, last: int, issuer: str = "clinic") -> dict[bytes, list[bytes]]:
    """Patients `first`…`last`-1 with one record each; the record of patient i is the same whatever the cohort."""
    return {keys.patient_key(issuer, str(i)): [record(keys, i)] for i in range(first, last)}


def record(keys: Keys, i: int) -> bytes:
    """A record hash of made-up pixels."""
    return hashlib.sha256(f"{keys.site} pixels {i}".encode()).digest()


def epsilon_for(plan: Plan, runs: float) -> float:
    """An epsilon whose open budget, forecast with this plan, holds about so many runs of it."""
    epsilon = 1.0
    for _ in range(20):
        order = accounting.best_order(epsilon, plan.delta, plan.mechanisms)
        cost = float(accounting.rdp(plan.mechanisms, [order])[0])
        epsilon = accounting.rdp_epsilon(runs * cost, order, plan.delta)
    return epsilon


def approve(state: State, kind: str, body: dict[str, Any], *signers: Signer) -> Approval:
    """A decision drawn up on this ledger now and signed, whatever it says."""
    decision = Decision.draw_up(state, kind, body, days=1)
    return Approval(decision, tuple(decision.signed(signer) for signer in signers))


@dataclass
class Site:
    """A ledger with everything that is needed to use it."""

    place: str
    keys: Keys
    controller: Controller
    ledger: Ledger
    plan: Plan
    fingerprint: str
    capacity: int

    def again(self) -> Ledger:
        """The same ledger as another program would open it."""
        return Ledger.open(self.place, self.keys)

    def again_blind(self) -> Ledger:
        """The same, not yet looked at: `verify` opens damaged ones too."""
        return Ledger(self.place, self.keys, witness=None, wait=5.0)


def make_site(place: str, keys: Keys, controller: Controller, *, runs: float = 3.5, plan: Plan | None = None) -> Site:
    """Found a ledger with one cohort of 20 patients and an open budget that holds about `runs` runs."""
    plan = plan or small_plan()
    ledger = Ledger.create(place, keys)
    patients = people(keys, 0, 20)
    ledger.register(
        COHORT, unit=plan.unit, issuer="clinic", public_size=plan.public_size, patients=patients, owner="Radiology"
    )
    budget = ledger.budget(
        COHORT,
        epsilon=epsilon_for(plan, runs),
        delta=plan.delta,
        forecast=plan.mechanisms,
        minimum_charge=0.0,
        reason="test",
        controller=controller,
    )
    cost = charge_of(plan.mechanisms).at(budget.order_index, plan.steps)
    return Site(place, keys, controller, ledger, plan, fingerprint(patients), budget.units // cost)


class Postgres:
    """A PostgreSQL server of one's own in a temporary folder, from the pgserver wheel."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dptrain-pg-"))
        if "XDG_RUNTIME_DIR" not in os.environ:  # where pgserver keeps its locks
            (self.folder / "runtime").mkdir(mode=0o700)
            os.environ["XDG_RUNTIME_DIR"] = str(self.folder / "runtime")
        import pgserver

        self.server = pgserver.get_server(self.folder / "data", cleanup_mode=None)  # type: ignore[attr-defined]
        self.uri = str(self.server.get_uri())
        self.server.psql("ALTER SYSTEM SET recovery_init_sync_method = 'syncfs';")  # else minutes on a slow disk
        self.server.psql("SELECT pg_reload_conf();")

    def database(self) -> str:
        """URL of a fresh, empty database."""
        name = f"ledger_{uuid.uuid4().hex[:12]}"
        self.server.psql(f"CREATE DATABASE {name};")
        return re.sub(r"/postgres(?=\?|$)", f"/{name}", self.uri)

    def drop(self, url: str) -> None:
        """Remove a database again."""
        name = re.search(r"/(ledger_\w+)", url)
        if name:
            self.server.psql(f"DROP DATABASE IF EXISTS {name[1]} WITH (FORCE);")

    def kill(self, *, whole: bool) -> None:
        """SIGKILL its connections to ledgers, from which it recovers, or all of it at once."""
        postmaster = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = []
        for folder in Path("/proc").iterdir():
            try:
                command = (folder / "cmdline").read_bytes()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            if parent == postmaster and (whole or b"postgres: postgres ledger_" in command):
                children.append(int(folder.name))
        killed = [postmaster, *children] if whole else children
        for process in killed:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        end = time.monotonic() + 30
        while any(Path(f"/proc/{process}").exists() for process in killed) and time.monotonic() < end:
            time.sleep(0.01)

    def start(self) -> None:
        """Start it again where it is dead."""
        self.server.ensure_postgres_running()

    def stop(self) -> None:
        """Stop the server and remove its folder."""
        self.server.cleanup_mode = "stop"
        self.server.cleanup()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server for the length of a block."""
    server = Postgres()
    try:
        yield server
    finally:
        server.stop()


def have_postgres() -> bool:
    """Whether a server can be started here."""
    return all(importlib.util.find_spec(name) is not None for name in ("pgserver", "psycopg"))

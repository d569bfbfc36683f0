"""The ledger: register a cohort, grant a budget, reserve, commit, close. Every method is one transaction.

The life of a charge: :meth:`Ledger.reserve` sets the whole plan aside; :meth:`Grant.commit` pays for a lease of
steps durably before the first of them runs; :meth:`Grant.close` ends the run, and on open budgets gives back the
leases that never began. A run that dies in between stays charged in full until :meth:`Ledger.resume` goes on with
it. Whatever fails, the transaction is rolled back: an entry is there whole, or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sqlite3
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dptrain import __version__
from dptrain.accounting.units import budget_units, from_units, to_units
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger import gate, members, rules, status, store
from dptrain.ledger.book import Book, read_entry
from dptrain.ledger.chain import Entry, SignedHead, sign_head
from dptrain.ledger.charges import ORDERS_VERSIONS, Charge, charge_of
from dptrain.ledger.grants import (
    CohortVersion,
    Grant,
    PublicDeclaration,
    Receipt,
    WeightsSource,
    charged,
    default_lease,
    whole,
)
from dptrain.ledger.keys import Controller, Keys, normal_issuer
from dptrain.ledger.state import ADJACENCY, Budget, RunState, State, Version
from dptrain.ledger.status import CohortStatus
from dptrain.plan import Mechanism, Plan
from dptrain.vocabulary import Purpose

if TYPE_CHECKING:
    from dptrain.ledger.verify import Fault

NAME_LENGTH = 200
TEXT_LENGTH = 2000


class Ledger(Book):
    """One site's ledger, in a SQLite file or a PostgreSQL database. Safe for threads, processes and forks."""

    # -- making and opening ------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        place: str | os.PathLike[str],
        keys: Keys,
        *,
        witness: str | None = None,
        wait: float = store.WAIT_SECONDS,
    ) -> Ledger:
        """Found a ledger: tables and first entry, in one transaction.

        Raises LedgerRefused where there is one already, or the place cannot be written.
        """
        ledger = cls(place, keys, witness=witness, wait=wait)
        path = str(ledger.store.url.database)
        if ledger.store.sqlite:
            try:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            except OSError as error:
                raise LedgerRefused(f"The ledger {path} cannot be written: {error.strerror}.") from None
        with ledger.store.bare() as connection:
            if sa.inspect(connection).has_table("entries"):
                raise LedgerRefused(
                    f"There is a ledger at {ledger.store.name} already; ledgers are never overwritten.",
                    remedy="Use it, or name another place.",
                )
            store.migrate(connection)
            body = {
                "site": keys.site,
                "site_public": keys.site_public,
                "controller_public": keys.controller_public,
                "recovery_public": keys.recovery_public,
                "secret_check": keys.secret_check,
                "program": __version__,
                "schema": store.SCHEMA,
            }
            connection.execute(sa.insert(store.head), {"id": 1, "site": keys.site, "seq": 0, "hash": bytes(32)})
            ledger._state = State()
            ledger.append(connection, "genesis", body)
        return ledger

    @classmethod
    def open(
        cls,
        place: str | os.PathLike[str],
        keys: Keys,
        *,
        witness: str | None = None,
        wait: float = store.WAIT_SECONDS,
    ) -> Ledger:
        """Open a ledger and check that it is this site's, undamaged at its head, and not rolled back.

        Args:
            place: a path, or postgresql://….
            witness: a file or URL with heads that somebody else keeps; every grant then requires descent from
                them, and a witness that cannot be read refuses everything.
            wait: seconds to wait for another program that holds the ledger.

        Raises LedgerRefused for anything that is not so.
        """
        ledger = cls(place, keys, witness=witness, wait=wait)
        store.check_schema(ledger.store)
        with ledger.view() as (connection, state):
            ledger.descends(connection, state, ledger.heads())
        return ledger

    def close(self) -> None:
        """Let go of the connections. The ledger itself needs no closing."""
        self.store.close()

    # -- registration ------------------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        *,
        unit: str,
        issuer: str,
        public_size: int,
        patients: Mapping[bytes, Sequence[bytes]],
        owner: str,
        public: PublicDeclaration | None = None,
        version: int | None = None,
        overlaps: Sequence[str] = (),
        cautions: Sequence[str] = (),
        controller: Controller | None = None,
    ) -> CohortVersion:
        """Register a cohort, or a new version of it; the same content and facts again change nothing.

        Args:
            unit: what one unit of privacy is, in one word for reports (`patient`).
            issuer: who gave the patient ids.
            public_size: N, the number of training patients that the steward declares to the public.
            patients: patient key -> its record hashes (32 bytes each, from :class:`Keys`).
            owner: who answers for the cohort; named in every refusal.
            public: for a cohort that gates nothing; needs `controller`.
            version: the number that it must get; None: the next.
            overlaps: names of registered cohorts with patients in common, as the steward declares them.
            cautions: sentences that every report must carry.

        Raises:
            ConfigError: a name, size or key out of range.
            DataUnreadable: the same pixels under two patients.
            LedgerRefused: unknown overlap, missing signature, or a ledger that cannot be trusted or written.
        """
        _check_name("cohort", name)
        _check_name("unit", unit)
        _check_name("owner", owner)
        public_size = whole("public_size", public_size, least=1)
        if not patients:
            raise ConfigError(f"cohort '{name}' has no patients.")
        if public is not None:
            _check_texts("a public cohort", source=public.source, licence=public.licence)
        _check_texts("a cohort", **{f"caution {number}": text for number, text in enumerate(cautions, 1)})
        if public is not None and controller is None:
            raise LedgerRefused(
                "Only the controller may declare a cohort public.",
                remedy="Unlock the controller's key and run again.",
            )
        members.check(patients)
        facts: dict[str, Any] = {
            "name": name,
            "unit": unit,
            "adjacency": ADJACENCY,
            "issuer": normal_issuer(issuer),
            "public_size": public_size,
            "owner": owner,
            "fingerprint": members.fingerprint(patients),
            "public": None if public is None else {"source": public.source, "licence": public.licence},
            "overlaps": sorted(set(overlaps)),
            "cautions": [str(caution) for caution in cautions],
        }
        with self.write() as (connection, state):
            for other in facts["overlaps"]:
                if other == name or other not in state.cohorts:
                    raise LedgerRefused(f"The overlap '{other}' is no other cohort of this ledger.")
            there = state.cohorts.get(name)
            if there is not None:
                newest = state.newest(name)
                same = all(
                    getattr(newest, key) == facts[key]
                    for key in facts
                    if key not in ("name", "overlaps", "adjacency")
                )
                if same and set(facts["overlaps"]) <= set(there.overlaps) and version in (None, newest.number):
                    return _cohort_version(newest)
            number = len(there.versions) + 1 if there else 1
            if version not in (None, number):
                raise LedgerRefused(f"The next version of '{name}' is {number}, not {version}.")
            sealed = members.register(connection, state, self.keys, patients)
            self.append(connection, "register", {**facts, "version": number}, sealed, controller if public else None)
            return _cohort_version(state.versions[-1])

    def withdraw(self, patient_key: bytes) -> None:
        """Leave a patient out of everything from now on; what was spent stays spent.

        The entry holds no id and no key. Works for patients that no cohort holds yet.
        """
        if not (isinstance(patient_key, bytes) and len(patient_key) == 32):
            raise ConfigError("a patient key has 32 bytes: use Keys.patient_key.")
        with self.write() as (connection, state):
            sealed = members.withdraw(connection, state, self.keys, patient_key)
            if sealed is not None:
                self.append(connection, "withdraw", {}, sealed)

    # -- the controller's decisions ----------------------------------------------------------------------------

    def budget(
        self,
        cohort: str,
        *,
        epsilon: float,
        delta: float | None = None,
        kind: str = "open",
        forecast: Sequence[Mechanism],
        minimum_charge: float | None = None,
        reason: str,
        controller: Controller,
        advice: str | None = None,
    ) -> Budget:
        """Grant (epsilon, delta) for a cohort and its lineage, signed by the controller.

        Args:
            kind: `open`: any runs, chosen as one goes. `planned`: exactly the mechanisms of `forecast`.
            delta: None: min(1e-5, 1/(10 N)).
            forecast: open: the use that is expected, which fixes the order; planned: the declaration.
                On a cohort with an open budget, another open one changes it (a raise keeps the order); a
                planned one is added by basic composition.
            minimum_charge: open: below this remainder the cohort is locked (default: 1 % of epsilon).
            reason: why, in a sentence; advice: what the data protection officer advised.

        Raises:
            ConfigError: a number out of range, or a forecast missing.
            LedgerRefused: delta too large for the cohort, not the controller's key, or mechanisms that do not
                fit into a planned budget.
        """
        from dptrain import accounting
        from dptrain.plan import default_delta

        if kind not in ("open", "planned"):
            raise ConfigError(f"a budget of the kind '{kind}' does not exist: open or planned.")
        gate.check_epsilon(epsilon)
        _check_texts("a budget", reason=reason, advice=advice)
        if minimum_charge is not None and not (math.isfinite(minimum_charge) and 0 <= minimum_charge <= epsilon):
            raise ConfigError(f"minimum_charge={minimum_charge} must lie between 0 and epsilon={epsilon:g}.")
        forecast = tuple(forecast)
        with self.view() as (_, state):
            version = rules.cohort(state, cohort)
            changes = next((b for b in state.cohorts[cohort].budgets if state.budgets[b].kind == "open"), None)
            before = state.budgets[changes] if changes is not None and kind == "open" else None
        delta = (before.delta if before else default_delta(version.public_size)) if delta is None else float(delta)
        others = [state.budgets[number] for number in state.cohorts[cohort].budgets]
        gate.check_delta(delta, version.public_size, cohort, [b.delta for b in others if b is not before])
        if before is None and not forecast:
            raise ConfigError("a budget needs a forecast of its use (rate, noise, steps).")
        prefixes: list[float] = []
        if any(mechanism.noise_multiplier == 0 for mechanism in forecast):
            raise ConfigError("a forecast without noise has no finite epsilon.")
        if kind == "planned":
            prefixes = [
                0.0,
                *(float(accounting.pld_epsilon(forecast[:k], delta)) for k in range(1, len(forecast) + 1)),
            ]
            if not prefixes[-1] <= epsilon:
                raise LedgerRefused(
                    f"The declared mechanisms cost epsilon = {prefixes[-1]:.4g} together (delta = {delta:g}, joint "
                    f"PLD), more than the epsilon = {epsilon:g} to be granted.",
                    remedy="Raise epsilon, or declare more noise or fewer steps.",
                )
            order, units = accounting.ORDERS[0], 0
            own = float(accounting.pld_epsilon(forecast, delta / 2))
            with contextlib.suppress(ConfigError):  # too little is set aside for any order: then nothing is
                order = accounting.best_order(max(0.0, epsilon - own), delta / 2, forecast)
                units = budget_units(epsilon - own, delta / 2, order)
            minimum_charge = 0.0
        else:
            order = before.order if before else accounting.best_order(epsilon, delta, forecast)
            units = budget_units(epsilon, delta, order)
            allowed = from_units(max(0, units))
            if units <= 0:
                raise LedgerRefused(
                    f"epsilon = {epsilon:g} at delta = {delta:g} leaves nothing to spend at RDP order {order:g}.",
                    remedy="Grant a larger epsilon, or a planned budget.",
                )
            if minimum_charge is None:
                minimum_charge = before.minimum_charge if before else min(epsilon / 100, allowed / 10)
            if minimum_charge > allowed:
                raise ConfigError(
                    f"minimum_charge={minimum_charge:g} would lock the cohort at once: at order {order:g} at most "
                    f"{allowed:.3g} can be spent.",
                    remedy="Choose a smaller minimum charge.",
                )
        body = {
            "cohort": cohort,
            "unit": version.unit,
            "adjacency": ADJACENCY,
            "kind": kind,
            "epsilon": float(epsilon),
            "delta": delta,
            "order": float(order),
            "order_index": list(accounting.ORDERS).index(order),
            "orders_version": int(accounting.ORDERS_VERSION),
            "units": units,
            "minimum_charge": float(minimum_charge),
            "minimum_units": to_units(minimum_charge),
            "declared": [[m.sample_rate, m.noise_multiplier, m.steps, m.what] for m in forecast],
            "prefixes": prefixes,
            "reason": reason,
            "advice": advice,
            "changes": changes if kind == "open" else None,
        }
        if body["orders_version"] not in ORDERS_VERSIONS:
            raise LedgerRefused("the accounting's grid of orders is newer than this ledger knows.")
        with self.write() as (connection, state):
            self.append(connection, "budget", body, None, self._controller(state, controller))
            return replace(state.budgets[changes if body["changes"] is not None and changes else state.seq])

    def declare_weights(self, sha256: str, *, source: str, licence: str, controller: Controller) -> None:
        """Declare starting weights public, by the SHA-256 of their file (64 hex digits)."""
        _check_sha(sha256)
        _check_texts("public weights", source=source, licence=licence)
        body = {"sha256": sha256, "source": source, "licence": licence}
        with self.write() as (connection, state):
            self.append(connection, "weights", body, None, self._controller(state, controller))

    def permit(
        self, purpose: str, cohort: str, controller: Controller, *, reason: str, run: str | None = None
    ) -> int:
        """The controller's leave for one evaluation or audit of a locked cohort; returns its number."""
        if purpose not in ("evaluate", "audit"):
            raise ConfigError(f"'{purpose}' cannot be permitted: evaluate or audit can.")
        _check_texts("a permission", reason=reason)
        if run is not None:
            _check_name("run", run)
        body = {"purpose": purpose, "cohort": cohort, "run": run, "reason": reason}
        with self.write() as (connection, state):
            rules.cohort(state, cohort)
            self.append(connection, "permit", body, None, self._controller(state, controller))
            return state.seq

    def record_release(
        self,
        run: str,
        *,
        items: Sequence[str],
        recipient: str,
        controller: Controller,
        purpose: str | None = None,
        advice: str | None = None,
    ) -> Entry:
        """Record the controller's decision that results of a run leave the house; returns the entry."""
        if not items:
            raise ConfigError("a release names what is released.")
        _check_texts("a release", recipient=recipient, purpose=purpose, advice=advice)
        for item in items:
            _check_name("item", item)
        with self.write() as (connection, state):
            if run not in state.runs:
                raise LedgerRefused(f"The ledger knows no run '{run}'.")
            body = {
                "run": run,
                "items": list(items),
                "recipient": recipient,
                "purpose": purpose,
                "advice": advice,
            }
            return self.append(connection, "release", body, None, self._controller(state, controller))

    def lock(self, cohort: str, *, reason: str) -> None:
        """Lock a cohort by hand. Anyone may; only the controller can unlock."""
        _check_texts("a lock", reason=reason)
        with self.write() as (connection, state):
            rules.cohort(state, cohort)
            self.append(connection, "lock", {"cohort": cohort, "reason": reason})

    def unlock(self, cohort: str, *, reason: str, controller: Controller) -> None:
        """Take back a lock by hand. An exhausted budget stays exhausted."""
        _check_texts("an unlock", reason=reason)
        with self.write() as (connection, state):
            rules.cohort(state, cohort)
            body = {"cohort": cohort, "reason": reason}
            self.append(connection, "unlock", body, None, self._controller(state, controller))

    # -- grants ------------------------------------------------------------------------------------------------

    def reserve(
        self,
        plan: Plan,
        cohort: str,
        *,
        run: str,
        fingerprint: str,
        purpose: str = "train",
        weights: WeightsSource | None = None,
        lease: int | None = None,
    ) -> Grant:
        """Set a plan's whole charge aside and grant the run.

        Whether it is granted depends on the public charges of the cohort and its declared overlaps alone.

        Args:
            run: a name that no run of this ledger has had.
            fingerprint: of the data as they are now (:func:`fingerprint`); must be a registered version's.
            weights: where the starting weights come from; None: random.
            lease: steps paid at once; None: :func:`default_lease`.

        Raises LedgerRefused (exit code 3) with who owns the cohort, what was granted, what was spent by which
        runs and what to do.
        """
        _check_name("run", run)
        if purpose not in list(Purpose):
            raise LedgerRefused(f"'{purpose}' is no purpose that a ledger knows: {', '.join(Purpose)}.")
        if purpose != "train":
            return self.admit(cohort, purpose=purpose, run=run, fingerprint=fingerprint)
        lease = default_lease(plan.steps) if lease is None else min(whole("lease", lease, least=1), plan.steps)
        charge = charge_of(plan.mechanisms)
        heads = self.heads()
        with self.write() as (connection, state):
            self.descends(connection, state, heads)
            version = rules.version(state, cohort, fingerprint)
            if run in state.runs:
                raise LedgerRefused(
                    f"The run '{run}' is in the ledger already.",
                    remedy="Name the new run differently, or continue the old one with training.resume=….",
                )
            rules.check_plan(plan, version)
            inherited = rules.check_weights(state, weights)
            before = rules.gate_facts(state, cohort)
            budget = rules.afford(state, version, plan, charge)
            excluded = gate.excluded_classes(state, version, budget, charge, plan.steps)
            keys, barred = self._excluded(connection, state, version, excluded, budget, charge, plan.steps)
            body = {
                "run": run,
                "cohort": cohort,
                "version": version.id,
                "budget": None if budget is None else budget.id,
                "plan": plan.to_dict(),
                "charge": charge.to_dict(),
                "weights": None if weights is None else {"sha256": weights.sha256, "run": weights.run},
                "inherited": inherited,
                "lease": lease,
            }
            sealed = {"nonce": os.urandom(16).hex(), "classes": excluded, "units": barred}
            entry = self.append(connection, "reserve", body, sealed)
            after = rules.gate_facts(state, cohort)
            return Grant(
                self,
                id=entry.seq,
                version=version,
                run=run,
                purpose="train",
                plan=plan,
                excluded=frozenset(keys),
                committed=0,
                lease=lease,
                attempt=1,
                inherited=tuple(inherited),
                gate=replace(after, spent_before=before.spent_before),
                basis="public" if budget is None else "budget",
            )

    def resume(self, run: str) -> Grant:
        """Go on with a run that died: it continues after the last paid lease; lost steps are skipped and paid.

        From now on the earlier process, should it still live, can neither pay nor close.
        """
        heads = self.heads()
        with self.write() as (connection, state):
            self.descends(connection, state, heads)
            held = state.runs.get(run)
            if held is None:
                raise LedgerRefused(f"The ledger knows no run '{run}'.")
            if held.status != "open":
                raise LedgerRefused(
                    f"The run '{run}' was closed ({held.status}) and cannot go on.", remedy="Reserve a new run."
                )
            self.append(connection, "resume", {"run": run, "attempt": held.attempt + 1})
            version = state.version_of(held)
            keys = self._left_out(connection, state, version, held)
            return Grant(
                self,
                id=held.seq,
                version=version,
                run=run,
                purpose="train",
                plan=Plan.from_dict(held.plan),
                excluded=frozenset(keys),
                committed=held.committed,
                lease=held.lease,
                attempt=held.attempt,
                inherited=tuple(held.inherited),
                gate=rules.gate_facts(state, held.cohort),
                basis="public" if held.budget is None else "budget",
            )

    def admit(self, cohort: str, *, purpose: str, run: str, fingerprint: str) -> Grant:
        """Grant an evaluation or audit; it charges nothing and is recorded.

        What a run's plan declares belongs to that run, once, even when the cohort is locked meanwhile. Anything
        else is a new request: refused on a locked cohort, unless the controller permitted it.
        """
        _check_name("run", run)
        if purpose not in ("evaluate", "audit"):
            raise LedgerRefused(
                f"'{purpose}' is no purpose to be admitted for: evaluate or audit.",
                remedy="Training is reserved with a plan.",
            )
        heads = self.heads()
        with self.write() as (connection, state):
            self.descends(connection, state, heads)
            version = rules.version(state, cohort, fingerprint)
            held = state.runs.get(run)
            basis, permit = rules.basis(state, version, purpose, held, run)
            body = {
                "cohort": cohort,
                "version": version.id,
                "run": run,
                "purpose": purpose,
                "basis": basis,
                "permit": permit,
            }
            entry = self.append(connection, "admit", body)
            keys = self._left_out(connection, state, version, held)
            return Grant(
                self,
                id=entry.seq,
                version=version,
                run=run,
                purpose=purpose,
                plan=None if held is None else Plan.from_dict(held.plan),
                excluded=frozenset(keys),
                committed=0,
                lease=1,
                attempt=1,
                inherited=(),
                gate=rules.gate_facts(state, cohort),
                basis=basis,
            )

    # -- looking -----------------------------------------------------------------------------------------------

    def status(self, cohort: str) -> CohortStatus:
        """Where a cohort stands. Raises LedgerRefused for one that is not registered."""
        with self.view() as (_, state):
            rules.cohort(state, cohort)
            head = sign_head(self.keys, state.seq, bytes.fromhex(state.hash))
            return status.status_of(state, cohort, head, witness=self.witness is not None)

    def require_open(self, cohort: str) -> None:
        """Raise the refusal that a new training would get because the cohort is locked or has no budget.

        Records nothing. It spares a caller the reading of images; :meth:`reserve` decides.
        """
        with self.view() as (_, state):
            rules.require_open(state, rules.cohort(state, cohort))

    def cohorts(self) -> list[str]:
        """Names of all cohorts, in order of registration."""
        with self.view() as (_, state):
            return list(state.cohorts)

    def head(self) -> SignedHead:
        """The newest entry, signed by the site now."""
        with self.view() as (_, state):
            return sign_head(self.keys, state.seq, bytes.fromhex(state.hash))

    def run(self, name: str) -> RunState:
        """What the ledger holds about a run. Raises LedgerRefused for an unknown one."""
        with self.view() as (_, state):
            if name not in state.runs:
                raise LedgerRefused(f"The ledger knows no run '{name}'.")
            return replace(state.runs[name])

    def weights(self, sha256: str) -> WeightsSource | None:
        """What the ledger knows about a weights file: a declared one, a run's model, or None."""
        with self.view() as (_, state):
            if sha256 in state.weights:
                return WeightsSource(sha256)
            if sha256 in state.models:
                return WeightsSource(sha256, state.models[sha256])
            return None

    def entries(self) -> list[Entry]:
        """Every entry, oldest first. `sealed` is for the steward alone."""
        with self.view() as (connection, _):
            return [
                read_entry(row) for row in connection.execute(sa.select(store.entries).order_by(store.entries.c.seq))
            ]

    def steward(self, cohort: str) -> dict[str, int]:
        """Counts for the steward alone, never for a report: patients, withdrawn, shared with other cohorts, barred.

        `barred` counts patients who would be left out of a run that costs next to nothing.
        """
        with self.view() as (connection, state):
            version = rules.cohort(state, cohort)
            counts = members.counts(connection)
            budget = gate.carrier(state, cohort)
            tiny = Charge(None, None)
            here = [klass for klass in state.classes.values() if version.id in klass.versions]
            ids = set(state.cohorts[cohort].versions)
            linked = members.units(connection) if state.links else {}
            return {
                "patients": sum(counts.get(klass.id, 0) for klass in here),
                "withdrawn": sum(counts.get(klass.id, 0) for klass in here if klass.withdrawn),
                "in_other_cohorts": sum(counts.get(k.id, 0) for k in here if set(k.versions) - ids),
                "barred": sum(
                    counts.get(klass.id, 0)
                    for klass in here
                    if gate.bars(state, [klass.id], version, budget, tiny, 0)
                ),
                "same_pixels": sum(len(pairs) for pairs in linked.values()),
            }

    def verify(self, witness: str | None = None) -> list[Fault]:
        """Read everything again; every fault found, the first bad entry first (:mod:`dptrain.ledger.verify`)."""
        from dptrain.ledger.verify import verify

        return verify(self, witness)

    def backup(self, place: str | os.PathLike[str]) -> Path:
        """Write a consistent copy of a SQLite ledger to a file that does not exist yet, and check that it opens."""
        path = Path(place).expanduser().absolute()
        if not self.store.sqlite:
            raise ConfigError(
                "a ledger in PostgreSQL is backed up by the server's own tools.",
                remedy="Use pg_dump or base backups.",
            )
        if path.exists():
            raise ConfigError(f"{path} exists; a backup never overwrites.")
        partial = path.with_name(f".{path.name}.partial")
        try:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with contextlib.closing(sqlite3.connect(partial)) as target, self.view() as (connection, _):
                raw = connection.connection.driver_connection
                if raw is None:
                    raise LedgerRefused("the ledger's connection is closed.")
                raw.backup(target)
            Ledger.open(partial, self.keys).close()
            os.replace(partial, path)
        except (OSError, sqlite3.Error) as error:
            raise LedgerRefused(f"The backup {path} could not be written ({type(error).__name__}).") from None
        finally:
            partial.unlink(missing_ok=True)
        return path

    # -- keys --------------------------------------------------------------------------------------------------

    def rotate_site_key(self, controller: Controller) -> Keys:
        """Replace the site's key (`controller` may be the recovery key). Returns the new keys, saved."""
        return self._rotate("site", self.keys.with_new_site_key(), controller)

    def rotate_controller_key(self, controller: Controller, passphrase: str) -> Keys:
        """Replace the controller's key by one sealed with a new passphrase (`controller` may be the recovery key)."""
        new, content = self.keys.new_controller(passphrase)
        return self._rotate("controller", self.keys.with_controller(new), controller, content)

    def rotate_recovery_code(self, controller: Controller) -> Keys:
        """Replace the recovery code; the new one is on the returned keys, this once."""
        return self._rotate("recovery", self.keys.with_new_recovery(), controller)

    def rotate_secret(self, controller: Controller) -> Keys:
        """Put one more HMAC secret over every patient key and record hash. Register the cohorts again afterwards."""
        new, secret = self.keys.with_new_secret()
        return self._rotate("secret", new, controller, secret)

    def names(self, keys: Keys) -> bool:
        """Whether these keys are, all of them, those that the ledger names."""
        with self.view() as (_, state):
            return (state.site_keys[-1], state.controller, state.recovery, state.secret_check) == (
                keys.site_public,
                keys.controller_public,
                keys.recovery_public,
                keys.secret_check,
            )

    def _rotate(self, what: str, new: Keys, controller: Controller, extra: bytes | None = None) -> Keys:
        """The new keys are staged on disk before the entry, and take their place after it (docs/ledger.md, Keys)."""
        with self.write(any_site_key=True) as (connection, state):
            if controller.public not in (state.controller, state.recovery):
                raise LedgerRefused(
                    "This key is neither the controller's nor the recovery key of this ledger.",
                    remedy="Use the controller's key or the recovery code.",
                )
            body: dict[str, Any] = {"what": what}
            sealed: dict[str, Any] = {}
            if what == "secret":
                if any(run.status == "open" for run in state.runs.values()):
                    raise LedgerRefused(
                        "Runs are open; the secret cannot be changed under them.", remedy="Close them."
                    )
                if extra is None:
                    raise LedgerRefused("no secret was made.")
                members.rewrap(connection, extra)
                patients, records = members.digests(connection, new.digest_key)
                body["secret_check"] = new.secret_check
                sealed = {
                    "nonce": os.urandom(16).hex(),
                    "patients_digest": f"{patients:064x}",
                    "records_digest": f"{records:064x}",
                }
            else:
                publics = {
                    "site": new.site_public,
                    "controller": new.controller_public,
                    "recovery": new.recovery_public,
                }
                body["public"] = publics[what]
            new.stage(extra if what == "controller" else None)
            old, self.keys = self.keys, new
            try:
                self.append(connection, "rotate", body, sealed, controller)
                self.write_snapshot(connection, state)
            except BaseException:
                self.keys = old
                new.unstage()
                raise
        new.settle()
        return new

    # -- inside ------------------------------------------------------------------------------------------------

    def _commit(self, grant: Grant, through: int) -> None:
        with self.write() as (connection, state):
            run = self._own(state, grant)
            if through > run.committed:
                body = {"run": grant.run, "attempt": grant.attempt, "through": int(through)}
                self.append(connection, "commit", body)

    def _begin_calibration(self, grant: Grant) -> None:
        with self.write() as (connection, state):
            run = self._own(state, grant)
            if run.plan["calibration_noise_multiplier"] is None:
                raise LedgerRefused(f"The plan of run '{grant.run}' declares no calibration.")
            if run.committed == 0:
                raise LedgerRefused(f"The calibration of run '{grant.run}' is not paid: no step is.")
            if run.calibrated:
                raise LedgerRefused(
                    f"The calibration of run '{grant.run}' was begun already: one charge, one draw.",
                    remedy="Use what it gave, go without, or reserve a new run.",
                )
            self.append(connection, "calibrate", {"run": grant.run, "attempt": grant.attempt})

    def _own(self, state: State, grant: Grant) -> RunState:
        run = state.runs.get(grant.run)
        if run is None or run.seq != grant.id:
            raise LedgerRefused(f"The ledger holds no grant for the run '{grant.run}'.")
        if run.status != "open":
            raise LedgerRefused(f"The run '{grant.run}' was closed elsewhere.")
        if run.attempt != grant.attempt:
            raise LedgerRefused(f"The run '{grant.run}' was resumed elsewhere; this process must stop.")
        return run

    def _close(
        self, grant: Grant, how: str, steps_run: int, model: str | None, did: Sequence[str], note: str | None
    ) -> Receipt | None:
        if how not in ("complete", "interrupted"):
            raise ConfigError(f"a run ends 'complete' or 'interrupted', not '{how}'.")
        if grant.purpose != "train" or grant.plan is None:
            with self.write() as (connection, state):
                admission = state.admissions.get(grant.id)
                if admission is None or not admission.open:
                    raise LedgerRefused(f"The ledger holds no open grant to {grant.purpose} for '{grant.run}'.")
                self.append(connection, "finish", {"admission": grant.id, "status": how})
            return None
        plan = grant.plan
        if not 0 <= steps_run <= grant.committed:
            raise LedgerRefused(f"{steps_run} steps ran, but {grant.committed} were paid: this must not be.")
        if model is not None:
            _check_sha(model)
        _check_texts("a close", note=note)
        for purpose in did:
            if purpose not in plan.declares:
                raise LedgerRefused(f"the plan of '{grant.run}' does not declare '{purpose}'.")
        held = self.run(grant.run)
        steps = held.steps if held.planned else held.committed
        mechanisms = charged(plan, steps)
        epsilon = _pld(mechanisms, plan.delta)
        with self.write() as (connection, state):
            run = self._own(state, grant)
            before = rules.gate_facts(state, grant.cohort)
            body = {
                "run": grant.run,
                "attempt": grant.attempt,
                "status": how,
                "steps_run": int(steps_run),
                "committed": run.committed,
                "epsilon_pld": epsilon,
                "model": model,
                "did": sorted(set(did)),
                "note": note,
            }
            self.append(connection, "close", body)
            after = rules.gate_facts(state, grant.cohort)
            return Receipt(
                run=grant.run,
                cohort=grant.cohort,
                status=how,
                steps_run=int(steps_run),
                steps_charged=run.steps_charged,
                steps_planned=plan.steps,
                epsilon_pld=epsilon,
                delta=plan.delta,
                unit=plan.unit,
                adjacency=ADJACENCY,
                mechanisms=mechanisms,
                rest_charged=run.rest is not None and run.steps_charged > 0,
                gate=replace(after, spent_before=before.spent_before),
                head=sign_head(self.keys, state.seq, bytes.fromhex(state.hash)),
            )

    def _controller(self, state: State, controller: Controller) -> Controller:
        if controller.public != state.controller:
            raise LedgerRefused(
                "This key is not the controller's key of this ledger: its signature would count for nothing.",
                remedy="Use the controller.json that belongs to this site; after a rotation, the newest one.",
            )
        return controller

    def _excluded(
        self,
        connection: Connection,
        state: State,
        version: Version,
        classes: Sequence[int],
        budget: Budget | None,
        charge: Charge,
        steps: int,
    ) -> tuple[set[bytes], list[int]]:
        """Keys to leave out: of barred classes, and of persons known under several keys; and those units."""
        found = members.keys_in(connection, classes)
        barred = []
        if state.links:
            for unit, pairs in members.units(connection).items():
                here = [key for key, klass in pairs if klass and version.id in state.classes[klass].versions]
                if here and (
                    len(here) > 1 or gate.bars(state, [klass for _, klass in pairs], version, budget, charge, steps)
                ):
                    barred.append(unit)
                    found.update(here)
        return found, barred

    def _left_out(self, connection: Connection, state: State, version: Version, run: RunState | None) -> set[bytes]:
        """This version's keys of everybody who withdrew, under this key or any other, and of whom `run` left out."""
        gone = {klass.id for klass in state.classes.values() if klass.withdrawn}
        classes = [number for number in gone if version.id in state.classes[number].versions]
        linked = members.units(connection) if state.links else {}
        units = {unit for unit, pairs in linked.items() if any(klass in gone for _, klass in pairs)}
        if run is not None and run.version == version.id:
            classes += gate.excluded_now(state, run)
            units.update(run.excluded_units)
            merged = [unit for unit in run.excluded_units if unit not in linked]
            if merged:  # into a unit of a lower number since; which of them nobody wrote down: all of them stay out
                units.update(unit for unit in linked if unit < max(merged))
        return members.keys_in(connection, classes) | {
            key
            for unit in units
            for key, klass in linked.get(unit, [])
            if klass and version.id in state.classes[klass].versions
        }


@functools.lru_cache(maxsize=256)
def _pld(mechanisms: tuple[Mechanism, ...], delta: float) -> float | None:
    """Joint PLD epsilon of a run alone; 0 for nothing, None where it is infinite."""
    if not mechanisms:
        return 0.0
    if any(mechanism.noise_multiplier == 0 for mechanism in mechanisms):
        return None
    from dptrain import accounting

    try:
        value = float(accounting.pld_epsilon(mechanisms, delta))
    except ConfigError:
        return None  # a figure for people; a run must always be able to close
    return value if math.isfinite(value) else None


def _cohort_version(version: Version) -> CohortVersion:
    return CohortVersion(version.cohort, version.number, version.fingerprint, version.public_size, version.unit)


def _check_name(what: str, name: str) -> None:
    if not isinstance(name, str) or not name.strip() or len(name) > NAME_LENGTH or not name.isprintable():
        raise ConfigError(f"the {what} '{name}' is not a printable text of 1 to {NAME_LENGTH} letters.")


def _check_texts(where: str, **texts: str | None) -> None:
    """Raises ConfigError for text that is empty, endless, or would break the tables that people read."""
    for name, text in texts.items():
        if text is None:
            continue
        if not text.strip():
            raise ConfigError(f"{where} needs a {name}: say it in a sentence.")
        odd = any(
            unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\u00ad\u200c\u200d" for c in text
        )
        if odd or len(text) > TEXT_LENGTH:
            raise ConfigError(
                f"the {name} of {where} is not one printable line of at most {TEXT_LENGTH} letters.",
                remedy="Leave out line breaks and control characters, and be brief.",
            )


def _check_sha(sha256: str) -> None:
    if len(sha256) != 64 or any(letter not in "0123456789abcdef" for letter in sha256):
        raise ConfigError(f"'{sha256[:80]}' is no SHA-256: 64 hex digits are needed.")

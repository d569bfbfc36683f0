"""The registry: which cohorts there are, who is in them, and who withdrew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger import gate, members, rules
from dptrain.ledger.book import Book
from dptrain.ledger.charges import Charge, charge_of
from dptrain.ledger.checks import check_name, check_patient_key, check_texts, whole
from dptrain.ledger.facts import CohortVersion, PublicDeclaration
from dptrain.ledger.keys import Controller, normal_issuer
from dptrain.ledger.kinds import Register, Withdraw
from dptrain.ledger.state import ADJACENCY, PatientClass, State, Version
from dptrain.plain import Json


def register(
    book: Book,
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
    binding: Json | None = None,
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
        binding: how the data are read, in plain JSON (:func:`dptrain.data.binding_of`): what trains and what scores
            is compared with it.

    Raises:
        ConfigError: a name, size or key out of range.
        DataUnreadable: the same pixels under two patients.
        LedgerRefused: unknown overlap, missing signature, or a ledger that cannot be trusted or written.
    """
    if public is not None and controller is None:
        raise LedgerRefused(
            "Only the controller may declare a cohort public.",
            remedy="Unlock the controller's key and run again.",
        )
    _check(name, unit, owner, patients, public, cautions)
    said = Version(
        id=-1,
        cohort=name,
        number=-1,
        fingerprint=members.fingerprint(patients),
        public_size=whole("public_size", public_size, least=1),
        unit=unit,
        owner=owner,
        issuer=normal_issuer(issuer),
        public=None if public is None else {"source": public.source, "licence": public.licence},
        cautions=[str(caution) for caution in cautions],
        seq=-1,
        time="",
        binding=None if binding is None else dict(binding),
    )
    others = sorted(set(overlaps))
    with book.write() as (connection, state):
        same = _registered(state, said, others, version)
        if same is not None:
            return same
        number = len(state.cohorts[name].versions) + 1 if name in state.cohorts else 1
        if version not in (None, number):
            raise LedgerRefused(f"The next version of '{name}' is {number}, not {version}.")
        book.check_members(connection, state, records=True)
        moved = members.register(connection, state, book.keys, patients)
        body = _body(replace(said, number=number), others, moved)
        book.add(connection, body, controller if public else None)
        return _cohort_version(state.versions[-1])


def _check(
    name: str,
    unit: str,
    owner: str,
    patients: Mapping[bytes, Sequence[bytes]],
    public: PublicDeclaration | None,
    cautions: Sequence[str],
) -> None:
    for what, text in {"cohort": name, "unit": unit, "owner": owner}.items():
        check_name(what, text)
    if not patients:
        raise ConfigError(f"cohort '{name}' has no patients.")
    if public is not None:
        check_texts("a public cohort", source=public.source, licence=public.licence)
    check_texts("a cohort", **{f"caution {number}": text for number, text in enumerate(cautions, 1)})
    members.check(patients)


def _body(version: Version, overlaps: Sequence[str], moved: Json) -> Register:
    return Register(
        name=version.cohort,
        version=version.number,
        unit=version.unit,
        adjacency=ADJACENCY,
        issuer=version.issuer,
        public_size=version.public_size,
        owner=version.owner,
        fingerprint=version.fingerprint,
        public=version.public,
        overlaps=tuple(overlaps),
        cautions=tuple(version.cautions),
        binding=version.binding,
        **moved,
    )


def _registered(state: State, said: Version, overlaps: Sequence[str], number: int | None) -> CohortVersion | None:
    """The newest version, if it says all this already. Raises LedgerRefused for an unknown overlap."""
    name = said.cohort
    for other in overlaps:
        if other == name or other not in state.cohorts:
            raise LedgerRefused(f"The overlap '{other}' is no other cohort of this ledger.")
    if name not in state.cohorts:
        return None
    newest = state.newest(name)
    fields = ("fingerprint", "public_size", "unit", "owner", "issuer", "public", "cautions", "binding")
    same = all(getattr(newest, field) == getattr(said, field) for field in fields)
    if same and set(overlaps) <= set(state.cohorts[name].overlaps) and number in (None, newest.number):
        return _cohort_version(newest)
    return None


def _cohort_version(version: Version) -> CohortVersion:
    return CohortVersion(version.cohort, version.number, version.fingerprint, version.public_size, version.unit)


def withdraw(book: Book, patient_key: bytes) -> None:
    """Leave a patient out of everything from now on; what was spent stays spent.

    The entry holds no id and no key. Works for patients that no cohort holds yet.
    """
    check_patient_key(patient_key)
    with book.write() as (connection, state):
        book.check_members(connection, state, records=True)
        moved = members.withdraw(connection, state, book.keys, patient_key)
        if moved is not None:
            book.add(connection, Withdraw(**moved))


def in_a_cohort(book: Book, patient_key: bytes) -> bool:
    """Whether a patient key belongs to a version of any cohort. For the steward alone."""
    check_patient_key(patient_key)
    with book.view() as (connection, state):
        klass = members.class_of(connection, patient_key)
        return klass in state.classes and bool(state.classes[klass].versions)


def steward(book: Book, cohort: str) -> dict[str, int]:
    """Counts for the steward alone, never for a report: patients, withdrawn, shared with other cohorts, barred.

    `barred` counts patients who would be left out of a run that costs next to nothing, `left_out_of_forecast` those
    who would be left out of the run that the budget was signed for (:func:`forecast_of`).
    """
    with book.view() as (connection, state):
        version = rules.cohort(state, cohort)
        counts = members.counts(connection)
        budget = gate.carrier(state, cohort)
        nothing = Charge(None, None)
        here = [klass for klass in state.classes.values() if version.id in klass.versions]
        ids = set(state.cohorts[cohort].versions)
        barred = [klass for klass in here if gate.bars(state, [klass.id], version, budget, nothing, 0)]
        linked = members.units(connection) if state.links else {}
        return {
            "patients": sum(counts.get(klass.id, 0) for klass in here),
            "withdrawn": sum(counts.get(klass.id, 0) for klass in here if klass.withdrawn),
            "in_other_cohorts": sum(counts.get(klass.id, 0) for klass in here if set(klass.versions) - ids),
            "barred": sum(counts.get(klass.id, 0) for klass in barred),
            "left_out_of_forecast": _left_out_of_forecast(state, version, here, counts),
            "same_pixels": sum(len(pairs) for pairs in linked.values()),
        }


def forecast_of(book: Book, cohort: str) -> tuple[int, int]:
    """(patients left out of the run that the budget was signed for, patients in all): for steward and controller.

    A second study on patients who have spent everything would train on nobody. Silence is owed to the public, not to
    who signs the budget.
    """
    with book.view() as (connection, state):
        version = rules.cohort(state, cohort)
        counts = members.counts(connection)
        here = [klass for klass in state.classes.values() if version.id in klass.versions]
        return _left_out_of_forecast(state, version, here, counts), sum(counts.get(klass.id, 0) for klass in here)


def _left_out_of_forecast(
    state: State, version: Version, classes: Sequence[PatientClass], counts: Mapping[int, int]
) -> int:
    budget = gate.carrier(state, version.cohort)
    forecast = () if budget is None else budget.mechanisms
    charge = charge_of(forecast) if forecast else Charge(None, None)
    steps = forecast[0].steps if forecast else 0
    return sum(
        counts.get(klass.id, 0) for klass in classes if gate.bars(state, [klass.id], version, budget, charge, steps)
    )

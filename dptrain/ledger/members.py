"""Who is in which cohort: bulk tables of keys, never a row for a patient and a charge.

`patients` holds a row for each key: its class (membership history) and, where the same pixels turned up under
several keys, the unit that they form. `records` holds a row for each record hash and its patient. Both tables are
covered by the chain through keyed digests: the sum modulo 2^256 of a keyed hash of each row, stated in every entry
that changes them. A changed, missing or added row changes the sum; without the HMAC secret nobody can make up rows
that keep it.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dptrain.errors import ConfigError, DataUnreadable
from dptrain.ledger.keys import Keys, wrap
from dptrain.ledger.state import PatientClass, State
from dptrain.ledger.store import chunks, insert_rows
from dptrain.ledger.store import patients as patient_table
from dptrain.ledger.store import records as record_table

MODULUS = 1 << 256
LOOK_UP = 5_000
WRITE = 20_000
_ROW = struct.Struct("<qq")


def fingerprint(patients: Mapping[bytes, Sequence[bytes]]) -> str:
    """SHA-256 (hex) over the sorted keys and, for each, its sorted distinct record hashes.

    The same on every machine, whatever the order of the manifest; patients without records count.
    """
    digest = hashlib.sha256(b"dptrain.cohort\0")
    for key in sorted(patients):
        hashes = patients[key]
        if len(hashes) == 1:
            digest.update(key + b"\1\0\0\0\0\0\0\0" + hashes[0])
            continue
        distinct = sorted(set(hashes))
        digest.update(key + struct.pack("<q", len(distinct)) + b"".join(distinct))
    return digest.hexdigest()


def patient_row(digest_key: bytes, key: bytes, klass: int, unit: int | None) -> int:
    """The keyed hash of one row of `patients`, as a number."""
    content = b"p" + key + _ROW.pack(klass, -1 if unit is None else unit)
    return int.from_bytes(hashlib.blake2b(content, digest_size=32, key=digest_key).digest(), "big")


def record_row(digest_key: bytes, record: bytes, patient: bytes) -> int:
    """The keyed hash of one row of `records`, as a number."""
    return int.from_bytes(hashlib.blake2b(b"r" + record + patient, digest_size=32, key=digest_key).digest(), "big")


def check(patients: Mapping[bytes, Sequence[bytes]]) -> None:
    """Raises ConfigError for keys of a wrong kind, DataUnreadable for one record under two patients."""
    owner: dict[bytes, bytes] = {}
    shared = 0
    for key, hashes in patients.items():
        if not (isinstance(key, bytes) and len(key) == 32):
            raise ConfigError("a patient key has 32 bytes: use Keys.patient_key.")
        for record in hashes:
            if not (isinstance(record, bytes) and len(record) == 32):
                raise ConfigError("a record hash has 32 bytes: use Keys.record_hash.")
            if owner.setdefault(record, key) != key:
                shared += 1
    if shared:
        raise DataUnreadable(
            f"{shared} record{'s have' if shared > 1 else ' has'} the same pixels as a record of another patient.",
            remedy="Join the patients, or drop the copies, then register again.",
        )


def register(
    connection: Connection, state: State, keys: Keys, patients: Mapping[bytes, Sequence[bytes]]
) -> dict[str, Any]:
    """Write the members of a new version; returns the sealed part of its entry.

    Patients already known move on to a class with one more membership. A record that another key brought
    earlier makes the two keys one unit.
    """
    key_of_digest = keys.digest_key
    names = sorted(patients)
    before = _classes_of(connection, names) if state.classes else {}
    old_records = _owners_of(connection, patients) if state.classes else {}
    pairs: list[tuple[bytes, bytes]] = []
    new_records: dict[bytes, bytes] = {}
    for key in names:
        for record in patients[key]:
            other = old_records.get(record)
            if other is None:
                new_records[record] = key
            elif other != key:
                pairs.append((key, other))
    olds = sorted({before[key][0] if key in before else 0 for key in names})
    first = max(state.classes, default=0) + 1
    moved = {old: first + offset for offset, old in enumerate(olds)}
    digest = state.patients_digest
    changed: list[dict[str, Any]] = []
    fresh = moved.get(0, 0)

    def new_patients() -> Iterator[tuple[bytes, int, None]]:
        nonlocal digest
        for key in names:
            if key not in before:
                digest += patient_row(key_of_digest, key, fresh, None)
                yield key, fresh, None

    insert_rows(connection, patient_table, new_patients())
    for key, (klass, unit) in before.items():
        digest -= patient_row(key_of_digest, key, klass, unit)
        digest += patient_row(key_of_digest, key, moved[klass], unit)
        changed.append({"b_key": key, "b_class": moved[klass]})
    for rows in chunks(changed, WRITE):
        connection.execute(
            sa.update(patient_table)
            .where(patient_table.c.key == sa.bindparam("b_key"))
            .values(klass=sa.bindparam("b_class")),
            rows,
        )
    records_digest = state.records_digest
    for record, key in new_records.items():
        records_digest += record_row(key_of_digest, record, key)
    insert_rows(connection, record_table, sorted(new_records.items()))
    links, digest = _link(connection, state.links, key_of_digest, digest, pairs)
    return {
        "nonce": secrets.token_hex(16),
        "classes": [[old, new] for old, new in moved.items()],
        "links": links,
        "patients_digest": f"{digest % MODULUS:064x}",
        "records_digest": f"{records_digest % MODULUS:064x}",
    }


def _classes_of(connection: Connection, names: Sequence[bytes]) -> dict[bytes, tuple[int, int | None]]:
    """Key -> (class, unit) of the patients that an earlier version brought."""
    columns = (patient_table.c.key, patient_table.c.klass, patient_table.c.unit)
    classes: dict[bytes, tuple[int, int | None]] = {}
    for chunk in chunks(names, LOOK_UP):
        for row in connection.execute(sa.select(*columns).where(patient_table.c.key.in_(chunk))):
            classes[bytes(row.key)] = (row.klass, row.unit)
    return classes


def _owners_of(connection: Connection, patients: Mapping[bytes, Sequence[bytes]]) -> dict[bytes, bytes]:
    """Record -> key of the patient who brought it, of these records that an earlier version held."""
    hashes = (record for key in sorted(patients) for record in patients[key])
    owners: dict[bytes, bytes] = {}
    for chunk in chunks(hashes, LOOK_UP):
        for row in connection.execute(sa.select(record_table).where(record_table.c.hash.in_(chunk))):
            owners[bytes(row.hash)] = bytes(row.patient)
    return owners


def _link(
    connection: Connection, links: int, digest_key: bytes, digest: int, pairs: Sequence[tuple[bytes, bytes]]
) -> tuple[int, int]:
    """Make the two keys of each pair one unit; returns the last unit's number and the new digest."""
    for pair in pairs:
        rows = {
            bytes(row.key): (int(row.klass), row.unit)
            for row in connection.execute(sa.select(patient_table).where(patient_table.c.key.in_(pair)))
        }
        units = {unit for _, unit in rows.values() if unit is not None}
        if len(units) == 1 and all(unit is not None for _, unit in rows.values()):
            continue
        if units:
            target = min(units)
            more = connection.execute(sa.select(patient_table).where(patient_table.c.unit.in_(units)))
            rows.update({bytes(row.key): (int(row.klass), row.unit) for row in more})
        else:
            links += 1
            target = links
        for key, (klass, unit) in rows.items():
            digest += patient_row(digest_key, key, klass, target) - patient_row(digest_key, key, klass, unit)
        connection.execute(sa.update(patient_table).where(patient_table.c.key.in_(list(rows))).values(unit=target))
    return links, digest


def withdraw(connection: Connection, state: State, keys: Keys, key: bytes) -> dict[str, Any] | None:
    """Move a patient, with every key of the same unit, to a withdrawn class; None where that was so already."""
    row = connection.execute(sa.select(patient_table).where(patient_table.c.key == key)).first()
    digest = state.patients_digest
    rows: list[tuple[bytes, int, int | None]]
    if row is None:
        rows = [(key, 0, None)]
    elif row.unit is None:
        rows = [(key, int(row.klass), None)]
    else:
        together = connection.execute(sa.select(patient_table).where(patient_table.c.unit == row.unit))
        rows = [(bytes(each.key), int(each.klass), each.unit) for each in together]
    moves: dict[int, int] = {}
    fresh = max(state.classes, default=0) + 1
    for each, klass, unit in rows:
        before: PatientClass | None = state.classes.get(klass)
        if before is not None and before.withdrawn:
            continue
        if klass not in moves:
            withdrawn = next(
                (c.id for c in state.classes.values() if c.withdrawn and c.parent == klass and _same(c, before)), 0
            )
            moves[klass] = withdrawn or fresh
            fresh += not withdrawn
        if row is None:
            connection.execute(sa.insert(patient_table), {"key": each, "klass": moves[klass], "unit": None})
        else:
            digest -= patient_row(keys.digest_key, each, klass, unit)
            connection.execute(sa.update(patient_table).where(patient_table.c.key == each).values(klass=moves[klass]))
        digest += patient_row(keys.digest_key, each, moves[klass], unit)
    if not moves:
        return None
    return {
        "nonce": secrets.token_hex(16),
        "classes": [[old, new] for old, new in sorted(moves.items())],
        "patients_digest": f"{digest % MODULUS:064x}",
        "records_digest": f"{state.records_digest:064x}",
    }


def _same(klass: PatientClass, before: PatientClass | None) -> bool:
    return klass.versions == (before.versions if before else [])


def keys_in(connection: Connection, classes: Sequence[int]) -> set[bytes]:
    """Every patient key in these classes."""
    keys: set[bytes] = set()
    for chunk in chunks(classes, LOOK_UP):
        rows = connection.execute(sa.select(patient_table.c.key).where(patient_table.c.klass.in_(chunk)))
        keys.update(bytes(row.key) for row in rows)
    return keys


def class_of(connection: Connection, key: bytes) -> int | None:
    """The class of a patient key; None for one that no table holds."""
    return connection.execute(sa.select(patient_table.c.klass).where(patient_table.c.key == key)).scalar()


def units(connection: Connection) -> dict[int, list[tuple[bytes, int]]]:
    """unit -> its (key, class) pairs, for persons who turned up under several keys."""
    pairs: dict[int, list[tuple[bytes, int]]] = defaultdict(list)
    rows = connection.execute(
        sa.select(patient_table).where(patient_table.c.unit.is_not(None)).order_by(patient_table.c.key)
    )
    for row in rows:
        pairs[int(row.unit)].append((bytes(row.key), int(row.klass)))
    return pairs


def digests(connection: Connection, digest_key: bytes) -> tuple[int, int]:
    """The digests of both tables as they are now, row by row in constant memory."""
    return patients_digest(connection, digest_key), records_digest(connection, digest_key)


def patients_digest(connection: Connection, digest_key: bytes) -> int:
    """The digest of `patients` as it is now; half a second for 100,000 rows."""
    columns = (patient_table.c.key, patient_table.c.klass, patient_table.c.unit)
    total = 0
    for key, klass, unit in connection.execute(sa.select(*columns).execution_options(yield_per=20_000)):
        total += patient_row(digest_key, key, klass, unit)
    return total % MODULUS


def records_digest(connection: Connection, digest_key: bytes) -> int:
    """The digest of `records` as it is now."""
    total = 0
    for record, patient in connection.execute(sa.select(record_table).execution_options(yield_per=20_000)):
        total += record_row(digest_key, record, patient)
    return total % MODULUS


def fault_of_patients(connection: Connection, state: State, keys: Keys) -> str | None:
    """What is wrong with `patients`; None where it is what the entries say."""
    try:
        same = patients_digest(connection, keys.digest_key) == state.patients_digest
    except (TypeError, struct.error):  # a column of another type
        same = False
    return None if same else "the table of patients is not the one that the entries describe"


def fault_of_records(connection: Connection, state: State, keys: Keys) -> str | None:
    """What is wrong with `records`; None where it is what the entries say."""
    try:
        same = records_digest(connection, keys.digest_key) == state.records_digest
    except TypeError:
        same = False
    return None if same else "the table of records is not the one that the entries describe"


def counts(connection: Connection) -> dict[int, int]:
    """class -> number of patient keys. For the steward alone."""
    rows = connection.execute(
        sa.select(patient_table.c.klass, sa.func.count().label("n")).group_by(patient_table.c.klass)
    )
    return {int(row.klass): int(row.n) for row in rows}


def rewrap(connection: Connection, secret: bytes) -> None:
    """Replace every key and hash by its HMAC under a new secret (rotation)."""
    people = sorted(
        (wrap(secret, bytes(row.key)), row.klass, row.unit) for row in connection.execute(sa.select(patient_table))
    )
    connection.execute(sa.delete(patient_table))
    insert_rows(connection, patient_table, people)
    hashes = sorted(
        (wrap(secret, bytes(row.hash)), wrap(secret, bytes(row.patient)))
        for row in connection.execute(sa.select(record_table))
    )
    connection.execute(sa.delete(record_table))
    insert_rows(connection, record_table, hashes)

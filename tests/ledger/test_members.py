"""Patients: keys, overlap, the same pixels under another id, withdrawal, silent exclusion, and no leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks._ledger_site import COHORT, Site, epsilon_for, make_site, people, record, small_plan
from dptrain.errors import ConfigError, DataUnreadable, LedgerRefused
from dptrain.ledger import Grant, Keys, Ledger, fingerprint, members
from tests.ledger.conftest import Home

FACTS: dict[str, Any] = {"unit": "patient", "issuer": "clinic", "public_size": 20, "owner": "Cardiology"}


def add_cohort(site: Site, name: str, patients: dict[bytes, list[bytes]], runs: float, **more: Any) -> str:
    """Register a cohort with a budget for about `runs` runs; returns its fingerprint."""
    site.ledger.register(name, patients=patients, **{**FACTS, **more})
    site.ledger.budget(
        name,
        epsilon=epsilon_for(site.plan, runs),
        delta=1e-3,
        forecast=site.plan.mechanisms,
        minimum_charge=0.0,
        reason="test",
        controller=site.controller,
    )
    return fingerprint(patients)


def run(site: Site, cohort: str, mark: str, name: str) -> Grant:
    """One whole run; returns its closed grant."""
    grant = site.ledger.reserve(site.plan, cohort, run=name, fingerprint=mark)
    grant.commit(site.plan.steps)
    grant.close()
    return grant


def public_view(ledger: Ledger, cohort: str) -> dict[str, Any]:
    """All that anyone but the steward can see of a cohort."""
    status = vars(ledger.status(cohort)).copy()
    for name in ("head", "fingerprint", "site"):
        status.pop(name)
    status["runs"] = [{**vars(each), "date": ""} for each in status["runs"]]
    status["budgets"] = [{**vars(each), "date": "", "id": 0} for each in status["budgets"]]
    return status


# -- keys -------------------------------------------------------------------------------------------------------


def test_patient_keys_follow_issuer_and_id(home: Home) -> None:
    key = home.keys.patient_key
    assert len(key("UKA", "17")) == 32
    assert (
        key("UKA", "17") == key(" uka ", " 17 ") == key("ＵＫＡ", "17")
    )  # width and case of the issuer do not count
    assert len({key("UKA", "17"), key("UKB", "17"), key("UKA", "71"), key("UK", "A17"), key("UKA1", "7")}) == 5
    for issuer, patient in (("", "17"), ("  ", "17"), ("UKA", ""), ("UKA", " ")):
        with pytest.raises(ConfigError):
            key(issuer, patient)


def test_record_hashes_follow_pixels_and_not_their_file(home: Home) -> None:
    mark = home.keys.record_hash
    image = np.arange(12, dtype=np.uint16).reshape(3, 4)
    types = [image.astype(name) for name in (">u2", np.uint8, np.int16, np.int64, np.float32, np.float64)]
    assert {*map(mark, [image, np.asfortranarray(image), image[:, ::-1][:, ::-1], *types])} == {mark(image)}
    others = [image.reshape(4, 3), image + 1, image + 0.5, -image.astype(np.int16), image[None]]
    assert len({mark(image), *map(mark, others)}) == 6
    assert mark(np.array([0.0, -0.0])) == mark(np.array([0.0, 0.0]))
    with pytest.raises(ConfigError, match="numbers"):
        mark(np.array(["a"]))


def test_another_site_names_patients_differently(home: Home, tmp_path: Any) -> None:
    other = Keys.create(tmp_path / "keys", "another passphrase")
    assert other.patient_key("UKA", "17") != home.keys.patient_key("UKA", "17")
    assert other.record_hash(np.zeros(3)) != home.keys.record_hash(np.zeros(3))


def test_the_fingerprint_is_of_the_content(home: Home) -> None:
    patients = {b"b" * 32: [b"2" * 32, b"1" * 32], b"a" * 32: [], b"c" * 32: [b"3" * 32]}
    same = {b"c" * 32: (b"3" * 32, b"3" * 32), b"a" * 32: (), b"b" * 32: (b"1" * 32, b"2" * 32)}
    assert fingerprint(patients) == fingerprint(same)
    moved = {**patients, b"a" * 32: [b"2" * 32], b"b" * 32: [b"1" * 32]}
    assert len({fingerprint(patients), fingerprint(moved), fingerprint({b"a" * 32: []})}) == 3


# -- exclusion is silent -------------------------------------------------------------------------------------------


def test_exhausted_elsewhere_is_left_out_silently(site: Site) -> None:
    """Patients 15…19 are in both; the small cohort's budget binds for them in the large one too."""
    small = add_cohort(site, "small", people(site.keys, 15, 35), 1.5)
    first = run(site, COHORT, site.fingerprint, "first")
    assert first.excluded == frozenset()
    second = run(site, COHORT, site.fingerprint, "second")
    shared = {site.keys.patient_key("clinic", str(i)) for i in range(15, 20)}
    assert second.excluded == shared  # another run would carry them past what `small` allows
    third = run(site, "small", small, "third")
    assert third.excluded == shared
    counts = site.ledger.steward(COHORT)
    assert counts["in_other_cohorts"] == 5
    assert site.ledger.verify() == []


def test_an_open_run_elsewhere_already_counts(site: Site) -> None:
    small = add_cohort(site, "small", people(site.keys, 15, 35), 1.5)
    site.ledger.reserve(site.plan, COHORT, run="open", fingerprint=site.fingerprint)
    assert len(run(site, "small", small, "b").excluded) == 5


def test_refunds_reach_every_class(site: Site) -> None:
    """A close gives back also to patients who moved on to another class in the meantime."""
    grant = site.ledger.reserve(site.plan, COHORT, run="a", fingerprint=site.fingerprint)
    small = add_cohort(site, "small", people(site.keys, 15, 35), 1.5)
    assert len(site.ledger.reserve(site.plan, "small", run="b", fingerprint=small).excluded) == 5
    grant.close("interrupted", 0)
    site.ledger.resume("b").close("interrupted", 0)
    assert site.ledger.reserve(site.plan, "small", run="c", fingerprint=small).excluded == frozenset()


def test_no_leak_grant_rate_and_status_do_not_follow_the_private_side(home: Home, tmp_path: Any) -> None:
    """One patient more, one exhausted elsewhere, one withdrawn: the public view stays the same, to the refusal."""
    views = []
    for number, (count, exhausted, withdrawn) in enumerate(
        [(20, False, False), (21, False, False), (20, True, True)]
    ):
        site = make_site(str(tmp_path / f"{number}.sqlite"), home.keys, home.controller)
        patients = people(home.keys, 0, count)
        site.ledger.register(COHORT, patients=patients, **{**FACTS, "owner": "Radiology"})
        elsewhere = add_cohort(site, "elsewhere", people(home.keys, 5, 6), 1.2)
        if exhausted:
            run(site, "elsewhere", elsewhere, "there")
        if withdrawn:
            site.ledger.withdraw(home.keys.patient_key("clinic", "7"))
        seen: list[Any] = []
        sizes = []
        for attempt in range(5):
            try:
                grant = site.ledger.reserve(site.plan, COHORT, run=f"r{attempt}", fingerprint=fingerprint(patients))
                grant.commit(10)
                receipt = grant.close()
                assert receipt is not None
                seen.append((grant.plan, grant.lease, grant.gate, receipt.gate, receipt.steps_charged))
                sizes.append(len(grant.excluded))
            except LedgerRefused as error:
                seen.append(str(error).replace("version 2", "version").replace("version 1", "version"))
        view = public_view(site.ledger, COHORT)
        view.pop("version")
        views.append((seen, view))
        # the planted patient 5 leaves after its one run, or at once where it was spent elsewhere; 7 has withdrawn
        assert sizes == ([2, 2, 2] if exhausted else [0, 1, 1])
    assert views[0] == views[1] == views[2]
    assert isinstance(views[0][0][-1], str)  # the last attempt was refused


def test_messages_never_tell_counts_of_patients(site: Site) -> None:
    add_cohort(site, "small", people(site.keys, 15, 35), 1.5)
    site.ledger.withdraw(site.keys.patient_key("clinic", "3"))
    for number in range(3):
        run(site, COHORT, site.fingerprint, f"r{number}")
    with pytest.raises(LedgerRefused) as caught:
        run(site, COHORT, site.fingerprint, "r3")
    text = str(caught.value).lower()
    assert not any(word in text for word in ("excluded", "withdrawn", "left out", "exhausted elsewhere"))
    public = [entry.body for entry in site.ledger.entries()]
    assert not any("excluded" in body or "classes" in body for body in public)


# -- declared overlap, lineage -----------------------------------------------------------------------------------


def test_declared_overlap_gates_publicly_in_both_directions(site: Site) -> None:
    part = add_cohort(site, "part", people(site.keys, 0, 10), 2.5, overlaps=[COHORT])
    run(site, COHORT, site.fingerprint, "a")
    run(site, "part", part, "b")
    assert site.ledger.status(COHORT).overlaps == ["part"]
    assert [each.run for each in site.ledger.status("part").runs] == ["a", "b"]
    assert site.ledger.status("part").spent_epsilon == pytest.approx(
        site.ledger.status("part").budgets[0].epsilon - site.ledger.status("part").budgets[0].remaining_epsilon
    )
    with pytest.raises(LedgerRefused, match="'part'"):
        run(site, COHORT, site.fingerprint, "c")  # fits chest, not part
    with pytest.raises(LedgerRefused):
        run(site, "part", part, "d")


def test_versions_share_one_budget(site: Site) -> None:
    fresh = people(site.keys, 100, 120)
    site.ledger.register(COHORT, patients=fresh, **{**FACTS, "owner": "Radiology"})
    run(site, COHORT, site.fingerprint, "a")
    run(site, COHORT, fingerprint(fresh), "b")
    run(site, COHORT, fingerprint(fresh), "c")
    with pytest.raises(LedgerRefused, match="budget"):
        run(site, COHORT, site.fingerprint, "d")


def test_a_planned_budget_elsewhere_binds_its_patients(site: Site) -> None:
    other = small_plan(noise_multiplier=9.0)
    patients = people(site.keys, 18, 38)
    site.ledger.register("planned", patients=patients, **FACTS)
    from dptrain import accounting

    epsilon = accounting.pld_epsilon(other.mechanisms, 1e-3) * 1.0001
    site.ledger.budget(
        "planned",
        kind="planned",
        epsilon=epsilon,
        delta=1e-3,
        forecast=other.mechanisms,
        reason="x",
        controller=site.controller,
    )
    shared = {site.keys.patient_key("clinic", str(i)) for i in (18, 19)}
    # all of the planned budget belongs to its own run: its patients can take part in nothing else
    assert run(site, COHORT, site.fingerprint, "a").excluded == shared
    grant = site.ledger.reserve(other, "planned", run="b", fingerprint=fingerprint(patients))
    assert grant.excluded == frozenset()


# -- one person, two keys ------------------------------------------------------------------------------------------


def test_the_same_pixels_under_another_id_are_one_person(site: Site) -> None:
    keys = site.keys
    alias = keys.patient_key("other clinic", "A-4")
    twin = {alias: [record(keys, 4)], keys.patient_key("other clinic", "B"): [record(keys, 900)]}
    other = add_cohort(site, "other", twin, 9.0, issuer="other clinic", public_size=20)
    for number in range(3):
        run(site, COHORT, site.fingerprint, f"r{number}")
    assert run(site, "other", other, "x").excluded == {alias}  # spent as patient 4 of chest
    assert site.ledger.steward("other")["same_pixels"] == 2
    site.ledger.withdraw(keys.patient_key("clinic", "4"))
    with site.ledger.admit("other", purpose="evaluate", run="x", fingerprint=other) as grant:
        assert grant.excluded == {alias}  # who withdraws, withdraws under every id
    assert site.ledger.verify() == []


def test_records_under_two_patients_are_counted_each_once() -> None:
    one, two, three = (bytes([number]) * 32 for number in (1, 2, 3))
    a, b, c = (bytes([number]) * 32 for number in (7, 8, 9))
    members.check({one: [a, a, b], two: [c]})  # copies of a patient's own are none of another
    for patients, said in (
        ({one: [a, b], two: [a]}, "^1 record has the same pixels"),
        ({one: [a, b], two: [a, b]}, "^2 records have the same pixels"),
        ({one: [a], two: [a], three: [a]}, "^2 records have the same pixels"),
    ):
        with pytest.raises(DataUnreadable, match=said):
            members.check(patients)


@pytest.mark.parametrize(
    "patients", [{b"k" * 31: []}, {"k" * 32: []}, {b"k" * 32: [b"r" * 33]}, {b"k" * 32: ["r" * 32]}]
)
def test_keys_and_hashes_of_another_kind_are_refused(patients: Any) -> None:
    with pytest.raises(ConfigError, match="has 32 bytes"):
        members.check(patients)


def test_a_person_twice_in_one_cohort_is_left_out_and_units_merge(site: Site) -> None:
    keys = site.keys
    one, two = (keys.patient_key("third", name) for name in ("p", "q"))
    bridge = {one: [record(keys, 1), record(keys, 2)], two: [record(keys, 3)]}
    third = add_cohort(site, "third", bridge, 9.0, issuer="third")
    grant = run(site, COHORT, site.fingerprint, "a")
    joined = {keys.patient_key("clinic", name) for name in "12"}
    assert grant.excluded == joined  # two rows, one person
    assert grant.excluded.isdisjoint({keys.patient_key("clinic", "3")})
    more = {keys.patient_key("fourth", "z"): [record(keys, 2), record(keys, 3)]}
    add_cohort(site, "fourth", more, 9.0, issuer="fourth")
    assert run(site, COHORT, site.fingerprint, "b").excluded == {*joined, keys.patient_key("clinic", "3")}
    assert run(site, "third", third, "c").excluded == {one, two}
    assert site.ledger.verify() == []


# -- withdrawal ----------------------------------------------------------------------------------------------------


def test_withdrawal(site: Site) -> None:
    key = site.keys.patient_key("clinic", "3")
    run(site, COHORT, site.fingerprint, "before")
    spent = site.ledger.status(COHORT).spent_epsilon
    site.ledger.withdraw(key)
    head = site.ledger.head().hash
    site.ledger.withdraw(key)  # twice is once
    assert site.ledger.head().hash == head
    assert site.ledger.status(COHORT).spent_epsilon == spent
    assert run(site, COHORT, site.fingerprint, "after").excluded == {key}
    later = people(site.keys, 0, 25)
    site.ledger.register(COHORT, patients=later, **{**FACTS, "owner": "Radiology"})
    assert run(site, COHORT, fingerprint(later), "later").excluded == {key}
    stranger = site.keys.patient_key("clinic", "4711")
    site.ledger.withdraw(stranger)  # known to no cohort yet
    fresh = add_cohort(site, "fresh", people(site.keys, 4700, 4720), 3.5)
    assert run(site, "fresh", fresh, "z").excluded == {stranger}
    entries = [entry for entry in site.ledger.entries() if entry.kind == "withdraw"]
    assert all(key.hex() not in entry.body + entry.sealed and "3" not in entry.body for entry in entries)
    assert site.ledger.verify() == []
    for bad in (b"short", "text"):
        with pytest.raises(ConfigError):
            site.ledger.withdraw(bad)  # type: ignore[arg-type]


def test_withdrawal_reaches_a_run_that_is_resumed(site: Site) -> None:
    grant = site.ledger.reserve(site.plan, COHORT, run="a", fingerprint=site.fingerprint)
    grant.commit(1)
    key = site.keys.patient_key("clinic", "3")
    site.ledger.withdraw(key)
    assert site.ledger.resume("a").excluded == {key}
    add_cohort(site, "later", people(site.keys, 0, 5), 3.5)
    assert site.ledger.resume("a").excluded == {key}


def test_who_withdrew_is_left_out_under_an_id_that_turns_up_later(file_site: Site) -> None:
    """Withdrawn first, then the same pixels under another id: in no draw, evaluation or audit, resumed or new."""
    site, keys = file_site, file_site.keys
    site.ledger.withdraw(keys.patient_key("clinic", "4"))
    alias = keys.patient_key("clinic", "99")
    others = {**people(keys, 50, 60), alias: [record(keys, 4)]}
    mark = add_cohort(site, "later", others, 3.5)
    training = site.ledger.reserve(site.plan, "later", run="t", fingerprint=mark)
    assert alias in training.excluded
    assert alias in site.ledger.resume("t").excluded
    for purpose, run in (("evaluate", "t"), ("audit", "t"), ("evaluate", "another")):
        assert site.ledger.admit("later", purpose=purpose, run=run, fingerprint=mark).excluded == {alias}


def test_who_is_linked_after_the_reservation_and_withdraws_leaves_the_run(file_site: Site) -> None:
    """The other order: the run began with the alias in it, and the person withdraws under the first id."""
    site, keys = file_site, file_site.keys
    alias = keys.patient_key("clinic", "99")
    mark = add_cohort(site, "later", {**people(keys, 50, 60), alias: [record(keys, 4)]}, 3.5)
    assert not site.ledger.reserve(site.plan, "later", run="t", fingerprint=mark).excluded
    site.ledger.withdraw(keys.patient_key("clinic", "4"))
    assert alias in site.ledger.resume("t").excluded
    assert alias in site.ledger.admit("later", purpose="audit", run="t", fingerprint=mark).excluded


def test_a_barred_unit_stays_out_when_it_was_merged_into_an_older_one(file_site: Site) -> None:
    """Units are merged into the lowest number: a run that barred the higher one must not lose sight of it."""
    site, keys = file_site, file_site.keys
    first, second = keys.patient_key("b", "1"), keys.patient_key("b", "2")
    add_cohort(site, "links", {first: [record(keys, 1)], second: [record(keys, 2)]}, 9.0)
    for number in range(3):
        run(site, COHORT, site.fingerprint, f"r{number}")  # both are spent, under either key
    mark = add_cohort(site, "small", {second: [record(keys, 2)], **people(keys, 60, 70)}, 9.0)
    grant = site.ledger.reserve(site.plan, "small", run="t", fingerprint=mark)
    assert second in grant.excluded
    bridge = keys.patient_key("b", "3")
    site.ledger.register("bridge", patients={bridge: [record(keys, 1), record(keys, 2)]}, **FACTS)
    assert second in site.ledger.resume("t").excluded

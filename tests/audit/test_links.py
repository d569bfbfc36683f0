"""One person under several ids: hinted at, and audited as one where the column is given."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from dptrain.audit import patients, statistics
from dptrain.audit.links import suspected_links
from dptrain.audit.results import People, by_unit, summarise
from dptrain.settings import AuditConfig

PERSONS, IDS = 60, 2
TRUE = 0.88


def split_persons(
    rng: np.random.Generator, models: int, linked: int, *, by_person: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores, member, person of each id): the first `linked` persons have two ids, and a trace if either is in."""
    person = np.concatenate([np.repeat(np.arange(linked), IDS), np.arange(linked, PERSONS)])
    member = rng.random((models, len(person))) < 0.5
    if by_person:
        member = (rng.random((models, PERSONS)) < 0.5)[:, person]
    present = np.stack([member[:, person == one].any(axis=1) for one in range(PERSONS)], axis=1)
    separation = np.sqrt(2) * norm.ppf(TRUE)
    scores = rng.normal(size=(models, PERSONS))[:, person] + separation * present[:, person]
    return scores + 0.01 * rng.normal(size=scores.shape), member, person


def test_linked_ids_are_suspected_and_nobody_else() -> None:
    rng = np.random.default_rng(50)
    scores, member, person = split_persons(rng, 128, 10)
    pairs = suspected_links(scores, member)
    assert sum(person[a] == person[b] for a, b in pairs) >= 8
    assert all(person[a] == person[b] for a, b in pairs)


@pytest.mark.parametrize("models", [32, 64])
def test_nobody_is_suspected_where_nobody_is_linked(models: int) -> None:
    rng = np.random.default_rng(51)
    suspected = sum(bool(suspected_links(*split_persons(rng, models, 0)[:2])) for _ in range(60))
    assert suspected <= 9  # 5 % of 60 is 3; 10 or more happen in one of a thousand
    assert suspected_links(np.ones((64, 5)), rng.random((64, 5)) < 0.5) == []
    assert suspected_links(np.full((64, 5), np.nan), rng.random((64, 5)) < 0.5) == []


def test_a_person_audited_as_one_has_the_whole_risk() -> None:
    """By id the two hide each other (true 0.88, seen below 0.75); by person the risk shows."""
    rng = np.random.default_rng(52)
    scores, member, person = split_persons(rng, 128, PERSONS)
    evidence, fold = patients.crossfit(scores, member, np.arange(len(person)))
    assert np.mean(statistics.stratified_auc(evidence, member, fold).auc) < 0.75
    scores, member, person = split_persons(rng, 128, PERSONS, by_person=True)
    people = People([f"{i:016x}" for i in range(len(person))], np.full(len(person), "all"), {}, person.astype(str))
    unit, units = by_unit(people)
    assert len(units.pseudonym) == PERSONS
    coins = np.zeros((128, PERSONS), dtype=bool)
    coins[:, unit] = member
    summary = summarise(scores, coins, unit, units, AuditConfig(), generator=rng)
    assert summary.audit.auc is not None
    assert summary.audit.auc.mean == pytest.approx(TRUE, abs=0.03)


def test_patients_without_a_unit_stay_alone_and_mixed_ones_say_so() -> None:
    people = People(
        ["a", "b", "c", "d"],
        np.array(["x", "y", "x", "x"]),
        {"sex": np.array(["F", "F", "M", "M"])},
        np.array(["p", "p", "", ""]),
    )
    unit, units = by_unit(people)
    assert len(set(unit.tolist())) == 3
    assert unit[0] == unit[1]
    assert unit[2] != unit[3]
    row = int(unit[0])
    assert (units.pseudonym[row], units.label[row], units.columns["sex"][row]) == ("a", "mixed", "F")


def test_the_summary_hints_at_linked_ids() -> None:
    rng = np.random.default_rng(53)
    scores, member, person = split_persons(rng, 128, 10)
    people = People([f"{i:016x}" for i in range(len(person))], np.full(len(person), "all"), {})
    summary = summarise(scores, member, np.arange(len(person)), people, AuditConfig(), generator=rng)
    links = summary.audit.suspected_links
    assert links is not None
    assert links.pairs >= 8
    assert links.patients == 2 * links.pairs
    named = [row for row in summary.rows if row["linked_to"]]
    assert len(named) == links.patients
    assert all(row["linked_to"] != row["patient"] for row in named)

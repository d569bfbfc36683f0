"""Draws: independent, at the plan's rate, never following the private number of patients."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from dptrain.data import CryptoRandom, PatientLoader, PoissonSampler, Tensors, check_sampler, cohort_from_dataset
from dptrain.errors import CheckRefused, ConfigError, LedgerRefused
from dptrain.plan import Plan
from tests.data.shared import FakeGrant, FakeKeys


def plan(**changes):
    values = {
        "public_size": 40,
        "expected_batch_size": 10,
        "steps": 50,
        "noise_multiplier": 1.0,
        "max_grad_norm": 1.0,
        "delta": 1e-5,
        "max_records_per_patient": 3,
    }
    return Plan(**{**values, **changes})


def cohort_of(records=(1, 2, 3, 7), *, shape=(1, 4)):
    """Patient i has records[i] records; the value of every pixel is the record's number."""
    items, number = [], 0
    for patient, count in enumerate(records):
        for _ in range(count):
            number += 1
            items.append(
                {
                    "image": torch.full(shape, float(number)),
                    "label": patient % 2,
                    "patient_id": f"p{patient}",
                    "split": "train",
                }
            )
    for split in ("validation", "test"):
        number += 1
        items.append({"image": torch.full(shape, float(number)), "label": 0, "patient_id": split, "split": split})
    return cohort_from_dataset(items, keys=FakeKeys(), issuer="x", task="binary", split="split")


def tensors(cohort):
    inputs = torch.stack([cohort.source.item(i).image for i in range(len(cohort.records))])
    owner = torch.tensor([record.patient for record in cohort.records])
    return Tensors(inputs, torch.from_numpy(cohort.labels), owner, cohort)


def test_each_patient_is_drawn_at_the_rate_and_independently():
    draws = 20_000
    sampler = PoissonSampler(5, 0.3)
    seen = np.zeros((draws, 5))
    for i in range(draws):
        seen[i, sampler.draw()] = 1
    five_sigma = 5 * np.sqrt(0.3 * 0.7 / draws)
    assert np.abs(seen.mean(axis=0) - 0.3).max() < five_sigma
    correlation = np.corrcoef(seen.T) - np.eye(5)
    assert np.abs(correlation).max() < 5 / np.sqrt(draws)
    lag = np.mean(seen[1:, 0] * seen[:-1, 0]) - 0.09  # one step says nothing of the next
    assert abs(lag) < 5 * np.sqrt(0.09 * 0.91 / draws)
    sizes = seen.sum(axis=1)
    assert abs((sizes == 0).mean() - 0.7**5) < 0.015  # empty draws occur as often as they should
    assert abs(sizes.var() - 5 * 0.21) < 0.1  # a binomial size, not a fixed one


def test_an_empty_draw_is_a_step_without_chunks():
    cohort = cohort_of((1,))
    loader = PatientLoader(cohort, plan(expected_batch_size=1, steps=200), FakeGrant())
    logical = list(loader)
    assert [batch.step for batch in logical] == list(range(200))
    empty = [batch for batch in logical if batch.patients == 0]
    assert empty
    assert list(empty[0].chunks()) == []


def test_rate_and_number_of_steps_do_not_follow_the_patients_at_hand():
    for records in ((1,), (1,) * 30, (5,) * 60):
        loader = PatientLoader(cohort_of(records), plan(), FakeGrant())
        assert loader.sampler.sample_rate == 0.25
        assert len(loader) == 50


def test_rate_one_draws_everyone_every_time():
    cohort = cohort_of((1, 1, 1))
    loader = PatientLoader(cohort, plan(public_size=10, expected_batch_size=10, delta=1e-6), FakeGrant())
    assert all(batch.patients == 3 for batch in loader)


@pytest.mark.parametrize("in_memory", [True, False])
def test_chunks_hold_whole_patients_and_number_them_from_zero(in_memory):
    cohort = cohort_of((1, 2, 3, 1, 2, 3, 1, 2))
    source = tensors(cohort) if in_memory else cohort
    p = plan(public_size=8, expected_batch_size=8, delta=1e-6, views=2, steps=3)
    loader = PatientLoader(source, p, FakeGrant(), chunk=8)
    for logical in loader:
        seen = []
        for chunk in logical.chunks():
            assert len(chunk.image) <= 8
            assert chunk.patients == len(torch.unique(chunk.patient)) == int(chunk.patient.max()) + 1
            assert chunk.image.shape[1:] == (1, 4)
            assert chunk.image.dtype == torch.float32
            assert len(chunk.label) == len(chunk.patient) == len(chunk.image)
            for number in range(chunk.patients):
                values = chunk.image[chunk.patient == number][:, 0, 0]
                owners = {cohort.records[int(value) - 1].patient for value in values}
                assert len(owners) == 1  # rows of one number are of one patient
                assert all(int((values == value).sum()) == 2 for value in values)  # both views
                seen += list(owners)
        assert sorted(seen) == sorted(cohort.split("train"))  # nobody twice, nobody split


def test_the_cap_takes_a_fresh_subset_of_whole_size_each_step():
    cohort = cohort_of((20,))
    p = plan(public_size=10, expected_batch_size=10, delta=1e-6, steps=200)
    subsets = []
    for logical in PatientLoader(cohort, p, FakeGrant()):
        (chunk,) = logical.chunks()
        values = sorted(int(value) for value in chunk.image[:, 0, 0])
        assert len(values) == len(set(values)) == 3
        subsets.append(tuple(values))
    counts = np.bincount(np.concatenate(subsets), minlength=21)[1:]
    assert len(set(subsets)) > 100
    assert counts.min() > 10  # 30 expected of each record
    assert counts.max() < 60


def test_the_excluded_are_never_loaded_and_nothing_else_changes():
    cohort = cohort_of((2,) * 20)
    gone = cohort.split("train")[:5]
    grant = FakeGrant(excluded=frozenset(cohort.patients[i].key for i in gone))
    loader = PatientLoader(cohort, plan(steps=400), grant)
    read = []
    item = cohort.source.item
    cohort.source.item = lambda i: (read.append(cohort.records[i].patient), item(i))[1]
    sizes = []
    for logical in loader:
        sizes.append(logical.patients)
        for _ in logical.chunks():
            pass
    assert not set(read) & set(gone)
    assert loader.sampler.sample_rate == 0.25
    assert abs(np.mean(sizes) - 15 * 0.25) < 0.5  # the others are drawn as often as before


def test_a_chunk_too_small_for_one_patient_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match="3 records × 4 views × 1 crops = 12"):
        PatientLoader(cohort_of(), plan(views=4), FakeGrant(), chunk=11)


def test_no_grant_no_tensor():
    from dptrain.data import load_records, tensors_of

    cohort = cohort_of()
    for grant in (None, object()):
        with pytest.raises(LedgerRefused):
            PatientLoader(cohort, plan(), grant)  # type: ignore[arg-type]
        with pytest.raises(LedgerRefused):
            load_records(cohort, [0], grant)  # type: ignore[arg-type]
    closed = FakeGrant()
    closed.open = False
    with pytest.raises(LedgerRefused):
        PatientLoader(tensors(cohort), plan(), closed)  # cached tensors alike
    with pytest.raises(LedgerRefused):
        tensors_of(cohort, "train", closed)
    with pytest.raises(TypeError):
        PatientLoader(cohort, plan())  # type: ignore[call-arg]


def test_steps_that_are_not_paid_are_not_drawn():
    grant = FakeGrant(committed=2)
    loader = PatientLoader(cohort_of(), plan(), grant)
    batches = iter(loader)
    assert [next(batches).step, next(batches).step] == [0, 1]
    with pytest.raises(LedgerRefused):
        next(batches)


def test_no_step_is_drawn_twice():
    loader = PatientLoader(cohort_of(), plan(steps=3), FakeGrant(), start=1)
    assert next(iter(loader)).step == 1
    assert [batch.step for batch in loader] == [2]
    assert list(loader) == []


def test_other_samplers_and_loaders_are_refused():
    data = torch.utils.data.TensorDataset(torch.zeros(4))
    for other in (
        torch.utils.data.RandomSampler(data),
        torch.utils.data.WeightedRandomSampler([1.0], 1),
        torch.utils.data.SequentialSampler(data),
        torch.utils.data.DataLoader(data, shuffle=True),
    ):
        with pytest.raises(CheckRefused, match="PatientLoader"):
            check_sampler(other)
        with pytest.raises(CheckRefused):
            PatientLoader(cohort_of(), plan(), FakeGrant(), sampler=other)  # type: ignore[arg-type]
    with pytest.raises(CheckRefused, match="rate"):
        PatientLoader(cohort_of(), plan(), FakeGrant(), sampler=PoissonSampler(4, 0.5))
    with pytest.raises(CheckRefused, match="positions"):
        PatientLoader(cohort_of(), plan(), FakeGrant(), sampler=PoissonSampler(400, 0.25))
    check_sampler(PoissonSampler(4, 0.25), plan())


def test_draws_come_from_a_cryptographic_generator_that_is_never_stored():
    with pytest.raises(CheckRefused, match="predicted"):
        PoissonSampler(4, 0.5, np.random.default_rng(0))
    first, second = PoissonSampler(400, 0.5), PoissonSampler(400, 0.5)
    assert first.draw().tolist() != second.draw().tolist()
    with pytest.raises(TypeError):
        pickle.dumps(CryptoRandom())


def test_a_forked_child_draws_from_a_key_of_its_own():
    sampler = PoissonSampler(400, 0.5)
    sampler.draw()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, sampler.draw().astype(np.int64).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    theirs = np.frombuffer(os.read(read, 1 << 16), dtype=np.int64)
    os.close(read)
    assert theirs.tolist() != sampler.draw().tolist()

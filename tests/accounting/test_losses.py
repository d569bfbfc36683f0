"""Privacy loss distributions: closed forms, public accountants, joint use, groups; never below the truth."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptrain import accounting
from dptrain.accounting import losses
from dptrain.errors import ConfigError
from dptrain.plan import Mechanism, Plan
from tests.accounting.exact import gaussian_delta, gaussian_epsilon, run

GAUSSIANS = [(20.0, 1), (2.0, 4), (50.0, 1200), (300.0, 24000), (1.0, 1), (0.7, 1)]


def check_gaussian(epsilon: Callable[[list[Mechanism], float], float]) -> None:
    """The check that planted faults must fail: at least the closed form, and within 0.1 % of it."""
    for noise, steps in GAUSSIANS:
        for delta in (1e-3, 1e-5, 1e-8):
            truth = gaussian_epsilon(math.sqrt(steps) / noise, delta)
            got = epsilon(run(1.0, noise, steps), delta)
            assert truth * (1 - 1e-12) <= got <= truth * (1 + 1e-3) + 1e-6, (noise, steps, delta)


def test_epsilon_of_the_gaussian_mechanism() -> None:
    check_gaussian(accounting.pld_epsilon)


def with_interval(width: float, pessimistic: bool) -> Callable[[list[Mechanism], float], float]:
    from dp_accounting.pld import privacy_loss_distribution as pld

    def epsilon(mechanisms: list[Mechanism], delta: float) -> float:
        step = pld.from_gaussian_mechanism(
            mechanisms[0].noise_multiplier,
            value_discretization_interval=width,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        return float(step.self_compose(mechanisms[0].steps).get_epsilon_for_delta(delta))

    return epsilon


@pytest.mark.parametrize(
    "fault",
    [with_interval(1e-3, False), with_interval(2e-2, True), lambda m, d: accounting.pld_epsilon(m, d) * (1 - 1e-3)],
    ids=["optimistic rounding", "coarse grid", "rounded down"],
)
def test_planted_faults_are_caught(fault: Callable[[list[Mechanism], float], float]) -> None:
    with pytest.raises(AssertionError):
        check_gaussian(fault)


def test_delta_of_the_gaussian_mechanism() -> None:
    for noise, steps in GAUSSIANS[:4]:
        for epsilon in (0.0, 0.5, 2.0):
            truth = gaussian_delta(math.sqrt(steps) / noise, epsilon)
            assert truth <= accounting.pld_delta(run(1.0, noise, steps), epsilon) <= truth * 1.002 + 1e-9


def test_the_rounding_of_the_fourier_transform_is_covered() -> None:
    """24,000 compositions, down to a delta where its noise would show."""
    noise, steps = 300.0, 24000
    for delta in (1e-9, 1e-10):
        truth = gaussian_epsilon(math.sqrt(steps) / noise, delta)
        got = accounting.pld_epsilon(run(1.0, noise, steps), delta)
        assert truth <= got <= truth * 1.2
    assert losses.fourier_error({(1.0, noise): steps}) < 1e-10


@pytest.mark.parametrize(
    ("rate", "noise", "steps"), [(0.0256, 0.9, 1200), (0.05, 2.0, 1000), (0.27, 3.0, 200), (0.01, 0.8, 300)]
)
def test_agrees_with_dp_accounting_and_opacus(rate: float, noise: float, steps: int) -> None:
    from dp_accounting.pld import privacy_loss_distribution as pld
    from opacus.accountants import PRVAccountant

    delta = 1e-5
    mine = accounting.pld_epsilon(run(rate, noise, steps), delta)
    theirs = pld.from_gaussian_mechanism(noise, sampling_prob=rate, use_connect_dots=True).self_compose(steps)
    assert mine == pytest.approx(theirs.get_epsilon_for_delta(delta), rel=1e-3)
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    assert abs(mine - accountant.get_epsilon(delta, eps_error=0.01)) <= 0.02, (
        "PRV is an upper bound within 2·eps_error"
    )
    prv_low, _, _ = accountant._get_dprv(0.01, delta / 1000).compute_epsilon(delta, delta / 1000, 0.01)
    assert mine >= prv_low
    assert mine <= min(
        accounting.rdp_epsilon(float(v), o, delta)
        for v, o in zip(accounting.rdp(run(rate, noise, steps)), accounting.ORDERS)
    )


def test_agrees_with_dp_accounting_on_its_own_events() -> None:
    from dp_accounting.pld import PLDAccountant

    mechanisms = [*run(0.05, 1.5, 400), *run(1.0, 10.0, 1)]
    accountant = PLDAccountant()
    accountant.compose(accounting.event(mechanisms))
    assert accounting.pld_epsilon(mechanisms, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    naked = PLDAccountant()
    naked.compose(accounting.event(run(1.0, 0.0, 1)))
    assert naked.get_epsilon(1e-5) == math.inf


def test_both_directions_count() -> None:
    composed = losses._compose({(0.05, 1.0): 200}, 1)
    assert composed is not None
    delta = 1e-5
    both = [composed._pmf_remove.get_epsilon_for_delta(delta), composed._pmf_add.get_epsilon_for_delta(delta)]
    assert accounting.pld_epsilon(run(0.05, 1.0, 200), delta) >= max(both)
    assert min(both) < 0.95 * max(both), "a program that took the other direction would be caught here"


def test_the_grid_of_losses_is_fine_enough() -> None:
    for rate, noise, steps in [(0.0256, 0.9, 1200), (0.27, 5.0, 4000), (0.002, 0.8, 2000), (0.01, 3.0, 6000)]:
        items = {(rate, noise): steps}
        width = losses._interval(items, 1)
        assert width is not None
        fine = losses._epsilon(items, 1, 1e-5, width / 4)
        assert fine * (1 - 1e-6) <= losses._epsilon(items, 1, 1e-5) <= fine * 1.001


def test_joint_account_of_several_mechanisms() -> None:
    delta = 1e-5
    a, b = run(0.05, 1.5, 400), run(1.0, 10.0, 1)
    joint = accounting.pld_epsilon([*a, *b], delta)
    assert joint == accounting.pld_epsilon([*b, *a], delta), "order does not matter"
    assert max(accounting.pld_epsilon(a, delta), accounting.pld_epsilon(b, delta)) < joint
    assert joint < accounting.pld_epsilon(a, delta / 2) + accounting.pld_epsilon(b, delta / 2)
    split = [*run(0.05, 1.5, 150), *run(0.05, 1.5, 250)]
    assert accounting.pld_epsilon(split, delta) == accounting.pld_epsilon(a, delta)
    two = accounting.pld_epsilon([*run(1.0, 3.0, 1), *run(1.0, 4.0, 1)], delta)
    truth = gaussian_epsilon(math.hypot(1 / 3, 1 / 4), delta)
    assert truth <= two <= truth * 1.001


@given(st.floats(0.01, 0.5), st.floats(0.8, 5.0), st.integers(1, 500))
@settings(max_examples=6, deadline=None)
def test_monotone_in_everything(rate: float, noise: float, steps: int) -> None:
    delta = 1e-5
    base = accounting.pld_epsilon(run(rate, noise, steps), delta)
    assert accounting.pld_epsilon(run(rate, noise * 1.1, steps), delta) <= base * 1.001
    assert accounting.pld_epsilon(run(min(1.0, rate * 1.1), noise, steps), delta) >= base * 0.999
    assert accounting.pld_epsilon(run(rate, noise, 2 * steps), delta) >= base * 0.999
    assert accounting.pld_epsilon(run(rate, noise, steps), delta / 10) >= base * 0.999


def test_epsilon_over_steps() -> None:
    plan = Plan(
        public_size=1000,
        expected_batch_size=50,
        steps=200,
        noise_multiplier=1.2,
        max_grad_norm=1.0,
        delta=1e-5,
        calibration_noise_multiplier=20.0,
    )
    curve = accounting.epsilon_over_steps(plan, plan.delta, points=8)
    steps, epsilons = zip(*curve)
    assert (steps[0], steps[-1], len(curve)) == (1, 201, 8)
    assert list(epsilons) == sorted(epsilons)
    assert epsilons[-1] == accounting.pld_epsilon(plan.mechanisms, plan.delta)
    halfway = accounting.pld_epsilon(run(0.05, 1.2, steps[4]), plan.delta)
    assert epsilons[4] == pytest.approx(halfway, rel=2e-3)
    for step, epsilon in accounting.epsilon_over_steps(run(0.5, 1.0, 3), 1e-5):
        assert epsilon == pytest.approx(accounting.pld_epsilon(run(0.5, 1.0, step), 1e-5), rel=1e-3)
    assert accounting.epsilon_over_steps([], 1e-5) == []
    with pytest.raises(ConfigError):
        accounting.epsilon_over_steps(plan, 1e-5, points=0)


# Groups


def test_a_group_without_sampling_is_a_larger_sensitivity() -> None:
    for k in (2, 4):
        truth = gaussian_epsilon(k * math.sqrt(3) / 20.0, 1e-5)
        assert truth <= accounting.group(run(1.0, 20.0, 3), k, 1e-5) <= truth * 1.001


def test_a_group_of_sampled_patients_lies_between_its_bounds() -> None:
    mechanisms, delta = run(0.05, 2.0, 100), 1e-5
    one = accounting.pld_epsilon(mechanisms, delta)
    assert accounting.group(mechanisms, 1, delta) == one
    two = accounting.group(mechanisms, 2, delta)
    # General group privacy: (2ε, δ(1 + e^ε)) from one (ε, δ); the exact account must beat it.
    candidates = np.linspace(one, 2 * one, 30).tolist()
    general = min(2 * e for e in candidates if accounting.pld_delta(mechanisms, e) * (1 + math.exp(e)) <= delta)
    assert one < two <= general
    assert two <= accounting.group(mechanisms, 3, delta)
    # Lower bound: the same two patients always drawn together, at the same rate, in units of two patients.
    together = accounting.pld_epsilon(run(0.05, 1.0, 100), delta)
    assert two < together, "independent draws rarely meet"


def test_a_group_agrees_with_direct_integration_for_one_step() -> None:
    """delta of Binomial(2, q) shifts against none, one step, by plain numerical integration."""
    rate, noise, epsilon = 0.3, 1.5, 0.8
    x = np.linspace(-30, 40, 700_001)
    weights = [(1 - rate) ** 2, 2 * rate * (1 - rate), rate**2]
    density = [np.exp(-((x - shift) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi)) for shift in range(3)]
    mixture = sum(w * d for w, d in zip(weights, density))
    h = x[1] - x[0]
    remove = h * np.sum(np.maximum(0, mixture - math.exp(epsilon) * density[0]))
    add = h * np.sum(np.maximum(0, density[0] - math.exp(epsilon) * mixture))
    delta = float(max(remove, add))
    assert accounting.group(run(rate, noise, 1), 2, delta) == pytest.approx(epsilon, rel=2e-3)


# Edges


def test_without_noise_everything_is_infinite() -> None:
    none = [*run(0.1, 1.0, 3), *run(0.1, 0.0, 5)]
    assert accounting.pld_epsilon(none, 1e-5) == math.inf
    assert accounting.pld_delta(none, 3.0) == 1.0
    assert accounting.group(none, 3, 1e-5) == math.inf
    assert [e for _, e in accounting.epsilon_over_steps(run(0.1, 0.0, 5), 1e-5, 3)] == [math.inf] * 3


def test_nothing_costs_nothing() -> None:
    assert accounting.pld_epsilon([], 1e-5) == 0.0
    assert accounting.pld_delta([], 0.0) == 0.0
    assert accounting.group([], 2, 1e-5) == 0.0


def test_hardly_any_noise_gives_a_large_finite_bound_quickly() -> None:
    assert 1000 < accounting.pld_epsilon(run(0.1, 0.01, 10), 1e-5) < math.inf
    assert 1000 < accounting.group(run(0.1, 0.01, 10), 2, 1e-5) < math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_impossible_values_are_refused(bad: float) -> None:
    for call in (
        lambda: accounting.pld_epsilon(run(0.1, 1.0, 1), bad),
        lambda: accounting.pld_delta(run(0.1, 1.0, 1), bad),
        lambda: accounting.group(run(0.1, 1.0, 1), 2, bad),
        lambda: accounting.group(run(0.1, 1.0, 1), -1, 1e-5),
        lambda: accounting.group(run(0.1, 1.0, 1), 1.5, 1e-5),  # type: ignore[arg-type]
        lambda: accounting.epsilon_over_steps(run(0.1, 1.0, 1), bad),
        lambda: Mechanism(0.1, bad, 1),
        lambda: Mechanism(bad, 1.0, 1),
    ):
        with pytest.raises(ConfigError):
            call()

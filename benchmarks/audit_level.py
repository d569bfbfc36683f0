"""How often a correct trainer is accused: simulated audits, counted.

    python -m benchmarks.audit_level --audits 2000

Each audit makes the residual test with the real engine on a small head at epsilon 1, 8 or 20, in turn, and takes the
canary bound of scores that leak as much as the promised mechanism can: those of the Gaussian mechanism with the curve
that the plan has. An audit accuses where a part speaks, and confirms on fresh steps or fresh scores, as the command
does. What speaks once is counted beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn

from dptrain import accounting
from dptrain.audit import bounds, residual
from dptrain.audit.games.canaries import kinds_of
from dptrain.audit.level import LARGEST, PARTS, level
from dptrain.audit.reference import Material
from dptrain.audit.statistics import clopper_pearson
from tests.audit.made import make_material, make_plan

EPSILONS = (1.0, 8.0, 20.0)
CANARIES, TRAININGS, DELTA = 200, 2, 1e-5


def material(epsilon: float) -> Material:
    """A head of 33 weights."""
    noise = accounting.calibrate_noise(epsilon, DELTA, 1 / 3, 12)
    plan = make_plan(public_size=60, expected_batch_size=20, steps=12, noise_multiplier=noise, max_grad_norm=1.0)
    return make_material(module=nn.Linear(32, 1), shape=(32,), plan=plan)


def leak(epsilon: float) -> float:
    """μ of the Gaussian mechanism that is just (epsilon, DELTA)-private (Dong, Roth, Su 2022, corollary 1)."""

    def excess(mu: float) -> float:
        return float(norm.cdf(-epsilon / mu + mu / 2) - np.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2)) - DELTA

    return float(brentq(excess, 1e-3, 50))


def canaries_speak(epsilon: float, mu: float, rng: np.random.Generator) -> bool:
    """One canary design under the promised mechanism, as strong an attack as it allows."""
    member = rng.random((TRAININGS, CANARIES)) < 0.5
    scores = mu * member + rng.normal(size=member.shape)
    return bounds.lower_bound(
        scores,
        member,
        promised=epsilon,
        delta=DELTA,
        confidence=1 - level("canaries", 0.999),
        kinds=kinds_of(CANARIES, TRAININGS),
    ).broken


def measured(head: Material) -> residual.Residuals:
    found = residual.measure(head)
    assert found is not None  # the plan adds noise, and the network draws none
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audits", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/audit_level.md"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rng, begun = np.random.default_rng(), time.monotonic()
    made = {epsilon: (material(epsilon), leak(epsilon)) for epsilon in EPSILONS}
    allowed = level("residual", 0.999) / len(residual.NAMES)
    spoke = dict.fromkeys((*residual.NAMES, "canaries"), 0)
    accused = done = 0
    while done < asked.audits and time.monotonic() - begun < asked.seconds:
        epsilon = EPSILONS[done % len(EPSILONS)]
        head, mu = made[epsilon]
        heard = {row.name for row in residual.detectors(measured(head)) if row.p_value <= allowed}
        if canaries_speak(epsilon, mu, rng):
            heard.add("canaries")
        for name in heard:
            spoke[name] += 1
        if heard - {"canaries"}:
            again = {row.name for row in residual.detectors(measured(head)) if row.p_value <= allowed}
            accused += bool(heard & again)
        if "canaries" in heard:
            accused += canaries_speak(epsilon, mu, rng)
        done += 1
    low, high = clopper_pearson(accused, done)
    rows = "\n".join(
        f"| {name} | {(allowed if name != 'canaries' else LARGEST * PARTS['canaries']):.3g} | {count} |"
        for name, count in spoke.items()
    )
    text = f"""# False alarms of an audit

`python -m benchmarks.audit_level`: {done} simulated audits of a correct trainer, a third each at epsilon 1, 8 and 20.

Accused (exit code 6, after confirmation on a fresh run): **{accused} of {done}**, 95 % interval {float(low):.5f} to
{float(high):.5f}; promised is at most {LARGEST:g}.

| part | level | spoke once, of {done} |
|---|---|---|
{rows}
"""
    asked.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

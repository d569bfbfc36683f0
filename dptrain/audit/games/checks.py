"""Is the promise kept? The residual test and the canaries, each heard twice before anything is said."""

from __future__ import annotations

import dataclasses

import torch

from dptrain.audit import bounds, residual
from dptrain.audit.games.canaries import canary_bound, canary_json
from dptrain.audit.level import level
from dptrain.audit.promise import Promise
from dptrain.audit.reference import Material
from dptrain.audit.work import Work
from dptrain.plan import Plan
from dptrain.records.audit import AuditCheck, Canary, Withheld
from dptrain.settings import AuditConfig


def residual_checks(material: Material, config: AuditConfig, device: torch.device) -> tuple[AuditCheck, ...]:
    """Each detector of :mod:`dptrain.audit.residual`, those that speak once more on fresh steps.

    Nothing where nothing is promised, or the network is random itself in a way that cannot be stilled.
    """
    first = residual.measure(material, device)
    if first is None:
        return ()
    allowed = level("residual", config.confidence) / len(residual.NAMES)
    rows = residual.detectors(first)
    again: dict[str, float] = {}
    if any(row.p_value <= allowed for row in rows):
        fresh = residual.measure(material, device)
        again = {} if fresh is None else {row.name: row.p_value for row in residual.detectors(fresh)}
    return tuple(
        AuditCheck(
            name=row.name,
            p_value=row.p_value,
            level=allowed,
            failed=row.p_value <= allowed,
            confirmed=again.get(row.name, 1.0) <= allowed if row.p_value <= allowed else None,
        )
        for row in rows
    )


def untested(plan: Plan, checks: tuple[AuditCheck, ...]) -> tuple[Withheld, ...]:
    """The residual test, where something is promised and it could not be made."""
    return (Withheld(what="residual"),) if plan.private and not checks else ()


def canary_check(
    material: Material, promise: Promise, config: AuditConfig, device: torch.device, work: Work | None
) -> tuple[Canary | None, tuple[Withheld, ...]]:
    """What canaries prove, confirmed by fresh ones where they refute the promise; what they could not have proved."""
    measured = canary_bound(material, promise, config, device=device, work=work)
    if measured is None:
        return None, ()
    bound, kind = measured
    if bound.broken:
        again = canary_bound(material, promise, config, device=device)
        bound = dataclasses.replace(bound, broken=again is not None and again[0].broken)
    if bound.provable > promise.epsilon or promise.curve is None:
        return canary_json(bound, kind), ()
    need = bounds.canaries_needed(promise.epsilon, promise.delta, bound.trainings, bound.confidence)
    return canary_json(bound, kind), (Withheld(what="canaries", have=bound.canaries, need=need),)

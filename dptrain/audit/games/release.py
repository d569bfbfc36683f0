"""The release game: the real cohort with and without one patient, on fresh models, confirms the few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from dptrain.audit import patients, statistics
from dptrain.audit.games.population import train_references
from dptrain.audit.reference import Material
from dptrain.audit.results import Summary, number_of
from dptrain.audit.scores import Array
from dptrain.audit.work import Work
from dptrain.records.audit import Confirmed, FreshAuc, Withheld
from dptrain.settings import AuditConfig


def confirm(
    material: Material,
    scores: Array,
    member: np.ndarray,
    summary: Summary,
    config: AuditConfig,
    work: Work | None,
    device: torch.device,
) -> Confirmed | None:
    """Release game: the whole cohort with and without one patient, on fresh models, for the clearest traces.

    The attack is fitted on the population's models, so it owes nothing to the fresh ones: no winner's curse.
    The models with everybody are shared by all candidates; Benjamini–Yekutieli allows for that.
    Writes into the rows of the patients tried whether they were confirmed, and their fresh AUC. None, and a line in
    `withheld`, where there are too few fresh models to confirm anybody.
    """
    order = np.argsort(-np.nan_to_num(summary.area.auc, nan=0.0), kind="stable")
    top = [int(i) for i in order if summary.traced[i]][: config.confirm]
    if not top:
        return Confirmed(game="release", tested=0, confirmed=0)
    half = config.confirm_models // 2
    need = 2 * statistics.confirming(len(top), config.false_discovery_rate)
    if 2 * half < need:  # not even a patient recognised without an error could be confirmed
        withheld = (*summary.audit.withheld, Withheld(what="confirmed", have=2 * half, need=need))
        summary.audit = replace(summary.audit, withheld=withheld)
        return None
    games = np.ones((half * (1 + len(top)), material.patients), dtype=bool)
    for number, person in enumerate(top):
        games[half * (1 + number) : half * (2 + number), person] = False
    fresh = train_references(material, games, config, work, device, "confirming on fresh models", "confirm")
    good, finite = patients.measurable(scores)
    own = material.trained & finite
    evidence = patients.pooled_evidence(
        scores[good][:, own],
        member[good],
        fresh[:, own],
        material.patient.numpy()[own],
        attack=config.attack,
        task=material.task,
    )
    p = np.empty(len(top))
    fresh_auc = []
    for number, person in enumerate(top):
        rows = np.r_[0:half, half * (1 + number) : half * (2 + number)]
        rows = rows[np.isfinite(evidence[rows, person])]  # a fresh model may diverge, too
        area = statistics.stratified_auc(
            evidence[rows][:, [person]], games[rows][:, [person]], np.zeros(len(rows), dtype=int)
        )
        low, high = statistics.auc_interval(area)
        p[number] = statistics.auc_p_values(area)[0]
        fresh_auc.append(FreshAuc(auc=number_of(area.auc[0]), low=number_of(low[0]), high=number_of(high[0])))
    adjusted = statistics.benjamini_hochberg(p, arbitrary_dependence=True)
    confirmed = adjusted <= config.false_discovery_rate
    for number, person in enumerate(top):
        summary.rows[person].update(confirmed=bool(confirmed[number]), fresh_auc=fresh_auc[number].auc)
    hits = int(np.sum(confirmed))
    return Confirmed(game="release", tested=len(top), confirmed=hits, auc=tuple(fresh_auc))

"""How exposure differs between groups of patients, without mistaking class or number of records for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dptrain.audit.statistics import LEVEL, clopper_pearson
from dptrain.cells import SMALL_CELL, nested, to_hide
from dptrain.records.audit import GroupShare
from dptrain.records.metrics import Suppressed

REPLICATES = 1000


@dataclass(frozen=True)
class Groups:
    """Shares of exposed patients by column and value; what was suppressed and why.

    table: column -> value -> its cell.
    """

    table: dict[str, dict[str, GroupShare]]
    suppressed: list[Suppressed]


def record_band(counts: np.ndarray) -> np.ndarray:
    """Number of records as one of '1', '2', '3-4', '5+', [P]."""
    return np.select([counts <= 1, counts == 2, counts <= 4], ["1", "2", "3-4"], "5+")


def by_group(
    exposed: np.ndarray,
    columns: Mapping[str, np.ndarray],
    strata: np.ndarray,
    generator: np.random.Generator,
    *,
    small_cell: int = SMALL_CELL,
    replicates: int = REPLICATES,
) -> Groups:
    """Share of exposed patients in each group, directly standardised, with patient-bootstrap intervals.

    Within a column every group is weighted to one common mix of the strata (class and number of records):
    the mix of all patients, over the strata in which the group has anybody.

    Args:
        exposed: bool [P] (a verdict), or any 0-to-1 risk.
        columns: column -> value of each patient [P]; empty strings mean unknown and are left out.
        strata: [P] labels of class and number of records.
        small_cell: groups with fewer patients are suppressed, see :func:`dptrain.cells.to_hide`, and so are
            those that tell of so few by another column's, see :func:`dptrain.cells.nested`.
    """
    numbers, stratum = np.unique(strata.astype(str), return_inverse=True)
    table: dict[str, dict[str, GroupShare]] = {}
    suppressed: list[Suppressed] = []
    weights: dict[str, np.ndarray] = {}
    shown: dict[tuple[str, str], np.ndarray] = {}
    for column, raw in columns.items():
        values = np.asarray(raw).astype(str)
        stated = values != ""
        names = np.unique(values[stated])
        if names.size < 2:
            continue
        members = {str(name): np.flatnonzero(values == name).tolist() for name in names}
        hidden = to_hide(members, np.flatnonzero(~stated).tolist(), small_cell)
        suppressed += [Suppressed(group=column, value=value, why=why) for value, why in hidden.items()]
        weights[column] = np.bincount(stratum[stated], minlength=numbers.size) / max(int(stated.sum()), 1)
        shown.update({(column, name): np.array(persons) for name, persons in members.items() if name not in hidden})
    betraying = nested({name: persons.tolist() for name, persons in shown.items()}, range(len(exposed)), small_cell)
    suppressed += [Suppressed(group=column, value=value, why=why) for (column, value), why in betraying.items()]
    for (column, name), persons in shown.items():
        if (column, name) in betraying:
            continue
        spread = _bootstrap(exposed[persons], stratum[persons], weights[column], generator, replicates)
        low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        share = _standardised(exposed[persons][None], stratum[persons][None], weights[column])[0]
        if low == high:  # nobody or everybody exposed: resampling cannot see what one more patient could
            exact = clopper_pearson(round(float(exposed[persons].sum())), persons.size)
            low, high = exact[0], exact[1]
        table.setdefault(column, {})[name] = GroupShare(
            patients=int(persons.size),
            share=float(share),
            low=float(min(low, share)),
            high=float(max(high, share)),
            raw_share=float(np.mean(exposed[persons])),
        )
    return Groups(table, suppressed)


def _bootstrap(
    exposed: np.ndarray, stratum: np.ndarray, weights: np.ndarray, generator: np.random.Generator, replicates: int
) -> np.ndarray:
    """Standardised shares [B] of `replicates` resamples of the patients [n], a few at a time."""
    step = max(1, int(4e6 / exposed.size))
    parts = []
    for start in range(0, replicates, step):
        draws = generator.integers(0, exposed.size, (min(step, replicates - start), exposed.size))
        parts.append(_standardised(exposed[draws], stratum[draws], weights))
    return np.concatenate(parts)


def _standardised(exposed: np.ndarray, stratum: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of the stratum shares for each replicate [B] of patients [B, n]."""
    replicates = exposed.shape[0]
    flat = (np.arange(replicates)[:, None] * weights.size + stratum).reshape(-1)
    size = np.bincount(flat, minlength=replicates * weights.size).reshape(replicates, -1)
    total = np.bincount(flat, weights=exposed.reshape(-1).astype(float), minlength=size.size).reshape(size.shape)
    present = np.where(size > 0, weights, 0.0)
    share = total / np.maximum(size, 1)
    return np.asarray((present * share).sum(axis=1) / np.maximum(present.sum(axis=1), 1e-300))

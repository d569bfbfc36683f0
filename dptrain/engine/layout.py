"""Which rows of a batch belong to which patient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dptrain.errors import CheckRefused


class Layout:
    """The patients of one chunk.

    Args:
        patient: integers [N] in 0…P−1, the patient of each record (any order, any number of records each), −1 for a
            row of nobody.
        patients: P; a patient without a record has a zero gradient.
        usual: records by which a layer's way is chosen; None: as many as the patient has who has most. A public
            number here keeps the ways, and so the last digits of everybody's norm, from following one patient.

    Attributes:
        real: P.
        patients: P and, after them, as many that stand for nobody: their rows are worked on like others, so that a
            chunk has one shape, and count nothing.
        somebody: [patients], which are no nobody; None where all are somebody.
        most: records of the patient who has most.

    Rows of a tensor inside the network are N·k: k consecutive rows a record (attention windows fold into the
    first dimension that way). Patients with equally many records are handled together, without a copy where
    their rows already lie side by side.
    """

    def __init__(self, patient: Tensor, patients: int, usual: int | None = None) -> None:
        where = patient.detach().to("cpu", torch.int64)
        if where.dim() != 1:
            raise CheckRefused(f"patient must be one number a record, [N]; it has shape {tuple(where.shape)}.")
        if patient.is_floating_point() or patient.is_complex():
            raise CheckRefused(f"patient must hold whole numbers, not {patient.dtype}.")
        if len(where) and not (int(where.min()) >= -1 and int(where.max()) < patients):
            raise CheckRefused(f"patient numbers must lie in 0…{patients - 1} (patients={patients}), −1 for nobody.")
        self.device = patient.device
        self.real = patients
        where, patients = _with_nobodies(where, patients)
        self.somebody = None if patients == self.real else torch.arange(patients, device=self.device) < self.real
        self.records = len(where)
        self.patients = patients
        self.patient = where.to(self.device)
        counts = torch.bincount(where, minlength=patients)
        self.counts = counts.to(self.device)
        self._host_counts = counts.tolist()
        self.most = most = max(self._host_counts, default=0)
        self.usual = usual or most
        self.uniform = (
            most if most * patients == self.records and bool((where.diff() >= 0).all()) and most > 0 else None
        )
        self._groups: list[tuple[int, Tensor, Tensor]] = []
        if self.uniform is None and self.records:
            order = torch.argsort(where, stable=True)
            first = torch.cumsum(counts, 0) - counts
            for count in sorted(set(self._host_counts) - {0}):
                members = torch.nonzero(counts == count).flatten()
                rows = order[first[members, None] + torch.arange(count)]
                self._groups.append((count, members.to(self.device), rows.to(self.device)))

    @property
    def record_weight(self) -> Tensor:
        """1 / (records of its patient) for each record [N]: a patient's gradient is the mean of its records'.

        0 for nobody's.
        """
        weight = 1.0 / self.counts.to(torch.float64)
        if self.somebody is not None:
            weight = torch.where(self.somebody, weight, 0.0)
        return weight[self.patient]

    @property
    def shares(self) -> Tensor:
        """A fresh random weight for each patient [P] with a record: no two have the same."""
        shares = 0.5 + torch.rand(self.patients, dtype=torch.float64, device=self.device)
        present = self.counts > 0 if self.somebody is None else (self.counts > 0) & self.somebody
        return torch.where(present, shares, 0.0)

    @property
    def present(self) -> int:
        """Patients who have a record here."""
        return sum(count > 0 for count in self._host_counts[: self.real])

    def largest(self, values: Tensor) -> Tensor:
        """The largest absolute value in the rows [N·k, …] of each patient: [P] in float64, NaN where one is NaN."""
        rows = torch.linalg.vector_norm(values.reshape(self.records, -1), ord=torch.inf, dim=1).double()
        if self.uniform is not None:
            largest: Tensor = rows.view(self.patients, -1).amax(1)
        else:
            largest = rows.new_zeros(self.patients).scatter_reduce_(0, self.patient, rows, "amax")
        return largest

    def per_row(self, values: Tensor, rows: int) -> Tensor:
        """Spread a value per patient [P] to the rows [N·k] of an activation."""
        spread = values[self.patient]
        k = rows // self.records
        return spread if k == 1 else spread.repeat_interleave(k)

    def groups(self, *tensors: Tensor) -> Iterator[tuple[Tensor | slice, list[Tensor]]]:
        """(patients, [tensor [m, R·k, …] of each]) for each set of m patients with R records each.

        The tensors have N·k rows (their k may differ).
        """
        if self.uniform is not None:
            yield slice(None), [t.reshape(self.patients, -1, *t.shape[1:]) for t in tensors]
            return
        for _, members, rows in self._groups:
            yield (
                members,
                [
                    t.reshape(self.records, -1, *t.shape[1:])[rows.flatten()].reshape(len(members), -1, *t.shape[1:])
                    for t in tensors
                ],
            )

    def sum_rows(self, values: Tensor) -> Tensor:
        """Add up the rows [N·k, …] of each patient: [P, …]."""
        if self.uniform is not None:
            if len(values) == self.patients:
                return values
            return values.reshape(self.patients, -1, *values.shape[1:]).sum(1)
        if len(values) != self.records:
            values = values.reshape(self.records, -1, *values.shape[1:]).sum(1)
        return values.new_zeros(self.patients, *values.shape[1:]).index_add_(0, self.patient, values)


def _with_nobodies(where: Tensor, patients: int) -> tuple[Tensor, int]:
    """Numbers after P−1 for the rows of nobody: as many rows each as the patients have, where all have as many."""
    empty = where < 0
    rows = int(empty.sum())
    if not rows:
        return where, patients
    counts = torch.bincount(where[~empty], minlength=max(1, patients))
    most = max(1, int(counts.max()))
    size = most if bool((counts == most).all()) and rows % most == 0 else 1
    where = where.clone()
    where[empty] = patients + torch.arange(rows) // size
    return where, patients + -(-rows // size)

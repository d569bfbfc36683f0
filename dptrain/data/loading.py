"""Pixels, under a grant only: records as tensors, Poisson draws of patients, batches that never split one.

The guarantees of this module (docs/guarantee.md, contracts 3 to 6):

- every patient of the split takes part in each step independently with the plan's rate, decided by a
  cryptographic generator; an empty draw is a step like any other;
- nothing here follows the private number of patients: rate, steps and normaliser come from the plan;
- a patient above the public cap contributes a fresh random subset of records in each step;
- views and crops of a record belong to its patient; a physical chunk never splits a patient;
- patients whom the grant excludes are drawn and then silently left out: nothing else changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dptrain.data.cohort import Cohort, mapped, threads_for
from dptrain.data.records import quiet_libraries
from dptrain.engine.chunks import ChunkShape, enough_rows
from dptrain.errors import CheckRefused, ConfigError, DataUnreadable
from dptrain.leave import Leave, require_leave
from dptrain.plan import Plan
from dptrain.randomness import CryptoRandom
from dptrain.settings.data import shape_of
from dptrain.vocabulary import Labels, Purpose, Split, task_spec

if TYPE_CHECKING:
    from torch import Tensor

CACHE_BYTES = 4 << 30


def load_records(cohort: Cohort, indices: Sequence[int], grant: Leave) -> Tensor:
    """Records by position, after the deterministic transforms: float32 [n, C, …].

    Records of patients whom the grant excludes are not read and come back as zeros.
    Raises LedgerRefused without an open grant; DataUnreadable where a file changed since the scan.
    """
    return load_tensors(cohort, indices, grant)[0]


def load_tensors(cohort: Cohort, indices: Sequence[int], grant: Leave) -> tuple[Tensor, Tensor]:
    """As :func:`load_records`, with the labels: [n], [n, C], or for segmentation int64 [n, 1, …]."""
    import torch

    require_leave(grant, cohort.fingerprint)
    excluded = frozenset(grant.excluded)
    hidden = [bool(excluded) and cohort.patients[cohort.records[i].patient].excluded(excluded) for i in indices]
    images = cohort.source.batch(indices)
    if images is not None:
        images[torch.tensor(hidden, dtype=torch.bool)] = 0
        return images, label_rows(cohort, indices)
    with quiet_libraries():
        threads = threads_for(cohort.source)
        read = mapped(lambda n: None if hidden[n] else read_item(cohort, indices[n]), len(indices), threads)
        items = list(read)
    blank = next((item for item in items if item is not None), None) or _blank(cohort)
    images = torch.stack([torch.zeros_like(blank["image"]) if item is None else item["image"] for item in items])
    if "label" not in blank:
        return images, label_rows(cohort, indices)
    labels = [torch.zeros_like(blank["label"]) if item is None else item["label"] for item in items]
    return images, torch.stack(labels)


def _blank(cohort: Cohort) -> dict[str, Any]:
    import torch

    shape = list(cohort.config.image_shape)
    item = {"image": torch.zeros(shape)}
    spec = task_spec(cohort.config.task)
    if spec.labels is Labels.MASK:
        item["label"] = torch.zeros(spec.label_shape(len(cohort.config.classes), shape), dtype=torch.int64)
    return item


def label_rows(cohort: Cohort, indices: Sequence[int]) -> Tensor:
    """Labels of records that are no images, [n] or [n, C]."""
    import torch

    return torch.from_numpy(cohort.labels[np.asarray(indices, dtype=np.int64)])


def read_item(cohort: Cohort, index: int) -> dict[str, Any]:
    """One record after the deterministic transforms. For this module, under a grant."""
    try:
        return cohort.source.item(index)
    except (ConfigError, CheckRefused):
        raise
    except Exception as error:
        raise DataUnreadable(
            f"{cohort.records[index].row}: the record cannot be read any more ({type(error).__name__}).",
            remedy="The files changed since the scan: restore them, or register a new version.",
        ) from None


@dataclass(repr=False)
class Tensors:
    """Records that are in memory already: cached features, or images.

    Args:
        inputs: [R, …]; labels: [R, …]; patient: int64 [R], positions in `cohort.patients`.
        cohort: whose keys decide who is excluded.
    """

    inputs: Tensor
    labels: Tensor
    patient: Tensor
    cohort: Cohort


def tensors_of(cohort: Cohort, split: str, grant: Leave) -> Tensors:
    """All records of a split in memory. Raises LedgerRefused without an open grant."""
    import torch

    indices = cohort.records_of(cohort.split(split))
    inputs, labels = load_tensors(cohort, indices, grant)
    patient = torch.tensor([cohort.records[i].patient for i in indices], dtype=torch.int64)
    return Tensors(inputs, labels, patient, cohort)


@dataclass(repr=False)
class PatientBatch:
    """One physical chunk: image [N, C, …], label [N, …], patient int64 [N] in 0…patients−1."""

    image: Tensor
    label: Tensor
    patient: Tensor
    patients: int


class PoissonSampler:
    """Independent draws: each of `num_patients` takes part with probability `sample_rate`, afresh every time.

    A draw compares a uniform number on a grid of 2⁻⁵³ with the rate, so the probability is exact to 2⁻⁵³.

    Args:
        num_patients: how many are at hand (private; it changes nothing but who may be drawn).
        sample_rate: q of the plan, from the declared size.
        generator: a :class:`CryptoRandom`, or a NumPy generator over AES; others are refused.
    """

    def __init__(self, num_patients: int, sample_rate: float, generator: Any = None) -> None:
        if not 0 < sample_rate <= 1:
            raise ConfigError(f"sample_rate={sample_rate:g} is no probability.", remedy="Take plan.sample_rate.")
        self.num_patients = num_patients
        self.sample_rate = sample_rate
        self.random = CryptoRandom() if generator is None else generator
        require_cryptographic(self.random)

    def draw(self) -> np.ndarray:
        """Positions of those who take part in one step, rising; possibly none."""
        return np.flatnonzero(numpy_generator(self.random).random(self.num_patients) < self.sample_rate)

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            yield self.draw()


def numpy_generator(random: Any) -> np.random.Generator:
    """The NumPy generator of a :class:`CryptoRandom`, or the generator itself."""
    return random.generator() if isinstance(random, CryptoRandom) else random


def require_cryptographic(random: Any) -> None:
    """Refuse generators that can be predicted or replayed. Raises CheckRefused."""
    if isinstance(random, CryptoRandom):
        return
    kind = type(getattr(random, "bit_generator", random)).__name__
    if kind not in ("AESCounter",):
        raise CheckRefused(
            f"{kind} can be predicted: who knows the draws has no amplification by sampling.",
            remedy="Leave the generator out, or pass dptrain.data.CryptoRandom().",
        )


def check_sampler(sampler: Any, plan: Plan | None = None) -> None:
    """Refuse any way of drawing that is not the plan's Poisson draw of patients.

    Takes a sampler or a loader. Shuffled, weighted, with-replacement, bucketed and curriculum samplers, and
    stock loaders of any kind, are refused, not accounted as if they were Poisson. Raises CheckRefused.
    """
    if isinstance(sampler, PatientLoader):
        return
    if isinstance(sampler, PoissonSampler):
        if plan is not None and sampler.sample_rate != plan.sample_rate:
            raise CheckRefused(
                f"the sampler draws with rate {sampler.sample_rate:g}, the plan charges for {plan.sample_rate:g}.",
                remedy="Make it with plan.sample_rate.",
            )
        return
    raise CheckRefused(
        f"{type(sampler).__name__} does not draw each patient independently: its ε would not be the plan's.",
        remedy="Use dptrain.data.PatientLoader; it draws patients by Poisson sampling at the plan's rate.",
    )


class PatientLoader:
    """The logical batches of a training: Poisson draws of patients, cut into physical chunks.

    Iterating yields one :class:`LogicalBatch` a step, for step = start … plan.steps−1, each step once and no
    more: a second iteration goes on where the first stopped. Every step is checked against the grant before
    it is drawn; nothing random about the draws is ever stored.

    Args:
        source: a :class:`Cohort` (records are read when first drawn and kept in memory), or :class:`Tensors`.
        plan: rate, steps, cap and views come from here and nowhere else.
        grant: asked with `require(step)` before each draw; its `excluded` are never loaded.
        split: whose patients are drawn.
        augment: random MONAI dictionary transforms for each view; None for those of the cohort's settings.
        chunk: rows in a physical chunk at most, at least cap × views × crops; fewer where an expected draw needs
            fewer.
        start: the first step (a resumed run's).
        sampler: only a :class:`PoissonSampler` at the plan's rate is accepted.
        cache_bytes: memory for records that are read from files.

    Raises:
        LedgerRefused: no open leave (:class:`dptrain.leave.Leave`) for this cohort.
        CheckRefused: another sampler, or another plan than the one that was granted.
        ConfigError: a chunk that a patient does not fit into.
    """

    def __init__(
        self,
        source: Cohort | Tensors,
        plan: Plan,
        grant: Leave,
        *,
        split: str = Split.TRAIN,
        augment: Sequence[Any] | None = None,
        chunk: int = 64,
        start: int = 0,
        sampler: PoissonSampler | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        from dptrain.data import transforms

        self.cohort = source if isinstance(source, Cohort) else source.cohort
        require_leave(grant, self.cohort.fingerprint)
        if grant.purpose == Purpose.TRAIN and (grant.plan is None or grant.plan.digest != plan.digest):
            raise CheckRefused("the plan that draws is not the plan that was granted.", remedy="Reserve again.")
        self.tensors = None if isinstance(source, Cohort) else source
        self.plan, self.grant, self.chunk = plan, grant, chunk
        nodes = augment
        if nodes is None:
            nodes = self.cohort.config.augment if self.tensors is None else ()
        self.augment = transforms.build(nodes, random=True)
        self.crops = transforms.crops(self.augment)
        self.rows_per_record = plan.views * self.crops
        most = plan.max_records_per_patient * self.rows_per_record
        if chunk < most:
            raise ConfigError(
                f"a physical chunk of {chunk} rows cannot hold one patient: {plan.max_records_per_patient} records × "
                f"{plan.views} views × {self.crops} crops = {most}.",
                remedy=f"Set training.chunk to at least {most}, or lower the cap or the views.",
            )
        self.chunk_shape = ChunkShape(
            enough_rows(chunk, plan.expected_batch_size, most, self.rows_per_record), most, self.rows_per_record
        )
        self.chunk = self.chunk_shape.rows
        self.members = self.cohort.split(split)
        self.rows = self._rows()
        self.hidden = self._hidden()
        if sampler is not None:
            check_sampler(sampler, plan)
            if sampler.num_patients != len(self.members):
                raise CheckRefused(
                    f"the sampler draws from {sampler.num_patients} positions, not from the split's patients."
                )
        self.sampler = sampler or PoissonSampler(len(self.members), plan.sample_rate)
        self.random = CryptoRandom()
        self.next_step = start
        self._cache: dict[int, dict[str, Any]] = {}
        self._cache_left = cache_bytes
        self._seeded = -1

    def _rows(self) -> list[np.ndarray]:
        """For each member of the split, its rows in the source."""
        if self.tensors is None:
            return [np.asarray(self.cohort.patients[i].records, dtype=np.int64) for i in self.members]
        owner = self.tensors.patient.cpu().numpy()
        order = np.argsort(owner, kind="stable")
        bounds = (
            np.searchsorted(owner[order], np.asarray(self.members)),
            np.searchsorted(owner[order], np.asarray(self.members), side="right"),
        )
        return [order[low:high] for low, high in zip(*bounds)]

    def _hidden(self) -> np.ndarray:
        """Which members the grant leaves out."""
        keys = frozenset(self.grant.excluded)
        return np.array([self.cohort.patients[i].excluded(keys) for i in self.members], dtype=bool)

    def __len__(self) -> int:
        return self.plan.steps - self.next_step

    def __iter__(self) -> Iterator[LogicalBatch]:
        while self.next_step < self.plan.steps:
            self.grant.require(self.next_step)
            drawn = self.sampler.draw()
            drawn = drawn[~self.hidden[drawn]]
            step, self.next_step = self.next_step, self.next_step + 1
            yield LogicalBatch(self, step, drawn)

    def shape(self) -> tuple[int, ...]:
        """Shape of one row of a chunk, crops included; tried on a made-up image where there are augmentations."""
        import torch

        from dptrain.data import transforms

        if self.tensors is not None:
            return tuple(self.tensors.inputs.shape[1:])
        shape = shape_of(self.cohort.config)
        if not self.augment:
            return shape
        view = {"image": torch.rand(shape)}
        if task_spec(self.cohort.config.task).labels is Labels.MASK:
            view["label"] = torch.zeros((1, *shape[1:]), dtype=torch.long)
        return tuple(transforms.apply(self.augment, view)[0]["image"].shape)

    def close(self) -> None:
        """Forget every record that was kept in memory."""
        self._cache.clear()

    def _chosen(self, member: int) -> np.ndarray:
        """The rows that a member contributes: all, or a fresh random subset of the public cap."""
        rows, cap = self.rows[member], self.plan.max_records_per_patient
        if len(rows) <= cap:
            return rows
        return np.sort(numpy_generator(self.random).choice(rows, size=cap, replace=False, shuffle=False))

    def _rows_of(self, index: int) -> tuple[list[Any], list[Any]]:
        """Images and labels of all views of one row."""
        from dptrain.data import transforms

        item = self._item(index)
        if not self.augment:
            return [item["image"]] * self.plan.views, [item["label"]] * self.plan.views
        if self._seeded != os.getpid():
            transforms.seed_freshly(self.augment)
            self._seeded = os.getpid()
        images: list[Any] = []
        labels: list[Any] = []
        label_is_image = item["label"].ndim == item["image"].ndim and item["label"].ndim > 1
        for _ in range(self.plan.views):
            view = {"image": item["image"].clone()}
            if label_is_image:
                view["label"] = item["label"].clone()
            try:
                results = transforms.apply(self.augment, view)
            except transforms.TransformFailed as error:
                raise DataUnreadable(f"data.augment: {error}.", remedy="Try it on a made-up image first.") from None
            if len(results) != self.crops:
                raise CheckRefused(
                    f"data.augment made {len(results)} crops of a record where {self.crops} were declared.",
                    remedy="Use transforms whose num_samples is fixed.",
                )
            for result in results:
                images.append(transforms.plain(result["image"]).float())
                labels.append(transforms.plain(result["label"]).long() if label_is_image else item["label"])
        return images, labels

    def _item(self, index: int) -> dict[str, Any]:
        if self.tensors is not None:
            return {"image": self.tensors.inputs[index], "label": self.tensors.labels[index]}
        found = self._cache.get(index)
        if found is None:
            found = read_item(self.cohort, index)
            if "label" not in found:
                found["label"] = label_rows(self.cohort, [index])[0]
            size = sum(value.nbytes for value in found.values())
            if size <= self._cache_left:
                self._cache[index], self._cache_left = found, self._cache_left - size
        return found

    def _batch(self, rows: Sequence[np.ndarray]) -> PatientBatch:
        """The chunk of these patients' chosen rows."""
        import torch

        counts = torch.tensor([len(part) for part in rows]) * self.rows_per_record
        patient = torch.repeat_interleave(torch.arange(len(rows)), counts)
        flat = np.concatenate(rows)
        if self.tensors is not None and not self.augment:
            index = torch.from_numpy(np.repeat(flat, self.plan.views)).to(self.tensors.inputs.device)
            image, label = self.tensors.inputs[index], self.tensors.labels[index.to(self.tensors.labels.device)]
            return PatientBatch(image, label, patient, len(rows))
        images: list[Any] = []
        labels: list[Any] = []
        with quiet_libraries():
            for index in flat.tolist():
                some_images, some_labels = self._rows_of(index)
                images += some_images
                labels += some_labels
        if len({tuple(value.shape) for value in images}) > 1:
            raise DataUnreadable(
                "data.augment gives views of different shapes.",
                remedy="End it with a crop or a resize to one size.",
            )
        return PatientBatch(torch.stack(images), torch.stack(labels), patient, len(rows))


class LogicalBatch:
    """One step's draw. `step` is public; `patients`, the realised count, is restricted."""

    def __init__(self, loader: PatientLoader, step: int, drawn: np.ndarray) -> None:
        self.step = step
        self.patients = len(drawn)
        self._loader = loader
        self._rows = [loader._chosen(int(member)) for member in drawn]

    @property
    def rows(self) -> int:
        """Rows of all chunks together (restricted)."""
        return sum(len(part) for part in self._rows) * self._loader.rows_per_record

    def chunks(self) -> Iterator[PatientBatch]:
        """Physical chunks, patients whole; none at all for an empty draw."""
        room = self._loader.chunk // self._loader.rows_per_record
        waiting: list[np.ndarray] = []
        held = 0
        for part in self._rows:
            if len(part) == 0:
                continue
            if held + len(part) > room:
                yield self._loader._batch(waiting)
                waiting, held = [], 0
            waiting.append(part)
            held += len(part)
        if waiting:
            yield self._loader._batch(waiting)

    def __iter__(self) -> Iterator[PatientBatch]:
        return self.chunks()

"""Pixels, under a grant only: records as tensors, Poisson draws of patients, batches that never split one.

The guarantees of this module (docs/guarantee.md, contracts 3 to 6):

- every patient of the split takes part in each step independently with the plan's rate, decided by a
  cryptographic generator; an empty draw is a step like any other;
- nothing here follows the private number of patients: rate, steps and normaliser come from the plan;
- a patient above the public cap contributes a fresh random subset of records in each step;
- views and crops of a record belong to its patient; a physical chunk never splits a patient;
- patients whom the grant excludes are drawn and then silently left out: nothing else changes;
- a record that cannot be read or augmented is NaN: its patient counts as zero, and stops nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dptrain.data import transforms
from dptrain.data.cohort import Cohort, mapped, threads_for
from dptrain.data.label_images import whole_label
from dptrain.data.records import quiet_libraries
from dptrain.engine.chunks import ChunkShape, enough_rows
from dptrain.errors import CheckRefused, ConfigError, DataUnreadable
from dptrain.leave import Leave, require_leave
from dptrain.plan import Plan
from dptrain.randomness import CryptoRandom
from dptrain.settings.data import shape_of
from dptrain.source import Sample
from dptrain.vocabulary import Labels, Purpose, Split, task_spec

if TYPE_CHECKING:
    from torch import Tensor

CACHE_BYTES = 4 << 30
TRIES = 4  # of augmentation on made-up images


def load_records(cohort: Cohort, indices: Sequence[int], grant: Leave) -> Tensor:
    """Records by position, after the deterministic transforms: float32 [n, C, …].

    Records of patients whom the grant excludes are not read and come back as zeros.
    Raises LedgerRefused without an open grant; DataUnreadable where a file changed since the scan.
    """
    return load_tensors(cohort, indices, grant)[0]


def load_tensors(cohort: Cohort, indices: Sequence[int], grant: Leave) -> tuple[Tensor, Tensor]:
    """As :func:`load_records`, with the labels: [n], [n, C], or for segmentation int64 [n, 1, …]."""
    return _load(cohort, indices, grant, read_item)


def load_available(cohort: Cohort, indices: Sequence[int], grant: Leave) -> tuple[Tensor, Tensor]:
    """As :func:`load_tensors`, for a run that has been paid for: one patient's data stop nothing (contract 13).

    A record that cannot be read, or has another shape than the others, comes back as NaN, so that its patient counts
    as zero, and is noted in `cohort.odd`. Raises DataUnreadable only where the place of all records is gone.
    """
    return _load(cohort, indices, grant, read_or_nan)


def _load(
    cohort: Cohort, indices: Sequence[int], grant: Leave, read_one: Callable[[Cohort, int], Sample]
) -> tuple[Tensor, Tensor]:
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
        read = mapped(lambda n: None if hidden[n] else read_one(cohort, indices[n]), len(indices), threads)
        samples = list(read)
    blank = next((sample for sample in samples if sample is not None), None) or blank_of(cohort, 0.0)
    images = torch.stack([torch.zeros_like(blank.image) if one is None else one.image for one in samples])
    if blank.label is None:
        return images, label_rows(cohort, indices)
    empty = torch.zeros_like(blank.label)
    return images, torch.stack([empty if one is None or one.label is None else one.label for one in samples])


def blank_of(cohort: Cohort, value: float) -> Sample:
    """A record of this value throughout, and background for a label image."""
    import torch

    shape, spec = shape_of(cohort.config), task_spec(cohort.config.task)
    label = None
    if spec.labels is Labels.MASK:
        label = torch.zeros(spec.label_shape(len(cohort.config.classes), shape), dtype=torch.int64)
    return Sample(torch.full(shape, value), label)


def label_rows(cohort: Cohort, indices: Sequence[int]) -> Tensor:
    """Labels of records that are no images, [n] or [n, C]."""
    import torch

    return torch.from_numpy(cohort.labels[np.asarray(indices, dtype=np.int64)])


def read_item(cohort: Cohort, index: int) -> Sample:
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


def read_or_nan(cohort: Cohort, index: int) -> Sample:
    """As :func:`read_item`; a record that cannot take part is NaN throughout, and noted in `cohort.odd`.

    Raises DataUnreadable where the place of all records is gone: that follows from no patient's data.
    """
    blank = blank_of(cohort, float("nan"))
    try:
        sample = cohort.source.item(index)
        label = None if sample.label is None else sample.label.shape
        if sample.image.shape == blank.image.shape and label == (None if blank.label is None else blank.label.shape):
            return sample
    except Exception:  # whatever it is: only the patient's own share may follow from it
        if not cohort.source.present():
            raise DataUnreadable(
                "The cohort's folder is gone.", remedy="Bring it back (mount it), then resume the run."
            ) from None
    cohort.odd.add(index)
    return blank


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
        self._view_shape = self.shape()
        self._cache: dict[int, Sample] = {}
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
        """Shape of one row of a chunk, crops included; tried on made-up images where there are augmentations.

        Raises CheckRefused for augmentation that fails on them, or gives views of different shapes or numbers.
        """
        import torch

        if self.tensors is not None and not self.augment:
            return tuple(self.tensors.inputs.shape[1:])
        shape = shape_of(self.cohort.config)
        if not self.augment:
            return shape
        shapes = set()
        for _ in range(TRIES):
            view = {"image": torch.rand(shape)}
            if task_spec(self.cohort.config.task).labels is Labels.MASK:
                view["label"] = (view["image"][:1] > 0.5).float()
            try:
                with quiet_libraries():
                    views = transforms.apply(self.augment, view)
            except transforms.TransformFailed as error:
                raise CheckRefused(
                    f"data.augment: {error} on a made-up image of {list(shape)}.",
                    remedy="Try it with dptrain check; sizes must fit data.image_shape.",
                ) from None
            if len(views) != self.crops:
                raise CheckRefused(
                    f"data.augment made {len(views)} crops of a record where {self.crops} were declared.",
                    remedy="Use transforms whose num_samples is fixed.",
                )
            shapes |= {tuple(made["image"].shape) for made in views}
        if len(shapes) > 1:
            raise CheckRefused(
                "data.augment gives views of different shapes.", remedy="End it with a crop or a resize to one size."
            )
        return shapes.pop()

    def close(self) -> None:
        """Forget every record that was kept in memory."""
        self._cache.clear()

    def _chosen(self, member: int) -> np.ndarray:
        """The rows that a member contributes: all, or a fresh random subset of the public cap."""
        rows, cap = self.rows[member], self.plan.max_records_per_patient
        if len(rows) <= cap:
            return rows
        return np.sort(numpy_generator(self.random).choice(rows, size=cap, replace=False, shuffle=False))

    def _rows_of(self, index: int) -> tuple[list[Tensor], list[Tensor]]:
        """Images and labels of all views of one row; NaN where they cannot be made (contract 13)."""
        sample = self._item(index)
        assert sample.label is not None
        if not self.augment:
            return [sample.image] * self.plan.views, [sample.label] * self.plan.views
        if self._seeded != os.getpid():
            transforms.seed_freshly(self.augment)
            self._seeded = os.getpid()
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for _ in range(self.plan.views):
            try:
                some_images, some_labels = self._view(sample)
            except Exception:  # whatever it is: only the patient's own share may follow from it
                self.cohort.odd.add(index)
                return self._nothing(sample.label)
            images += some_images
            labels += some_labels
        return images, labels

    def _view(self, sample: Sample) -> tuple[list[Tensor], list[Tensor]]:
        """One augmented view, in as many crops as were declared. Raises TransformFailed for anything else."""
        assert sample.label is not None
        view = {"image": sample.image.clone()}
        mask = task_spec(self.cohort.config.task).labels is Labels.MASK
        if mask:
            view["label"] = sample.label.float()
        made = transforms.apply(self.augment, view)
        images = [transforms.plain(one["image"]).float() for one in made]
        if len(made) != self.crops or any(tuple(image.shape) != self._view_shape for image in images):
            raise transforms.TransformFailed("data.augment gave another number or shape of crops")
        if not mask:
            return images, [sample.label] * len(images)
        labels = [whole_label(one["label"], len(self.cohort.config.classes)) for one in made]
        if any(tuple(label.shape) != (1, *self._view_shape[1:]) for label in labels):
            raise transforms.TransformFailed("data.augment gave a label of another shape")
        return images, labels

    def _nothing(self, label: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Rows of NaN in place of a record's views: their patient counts as zero."""
        import torch

        if task_spec(self.cohort.config.task).labels is Labels.MASK:
            label = torch.zeros((1, *self._view_shape[1:]), dtype=torch.int64)
        image = torch.full(self._view_shape, float("nan"))
        return [image] * self.rows_per_record, [label] * self.rows_per_record

    def _item(self, index: int) -> Sample:
        if self.tensors is not None:
            return Sample(self.tensors.inputs[index], self.tensors.labels[index])
        kept = self._cache.get(index)
        if kept is None:
            kept = read_or_nan(self.cohort, index)
            if kept.label is None:
                kept = Sample(kept.image, label_rows(self.cohort, [index])[0])
            assert kept.label is not None
            size = kept.image.nbytes + kept.label.nbytes
            if size <= self._cache_left:
                self._cache[index], self._cache_left = kept, self._cache_left - size
        return kept

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
        images: list[Tensor] = []
        labels: list[Tensor] = []
        with quiet_libraries():
            for index in flat.tolist():
                some_images, some_labels = self._rows_of(index)
                images += some_images
                labels += some_labels
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
        waiting_rows = 0
        for part in self._rows:
            if len(part) == 0:
                continue
            if waiting_rows + len(part) > room:
                yield self._loader._batch(waiting)
                waiting, waiting_rows = [], 0
            waiting.append(part)
            waiting_rows += len(part)
        if waiting:
            yield self._loader._batch(waiting)

    def __iter__(self) -> Iterator[PatientBatch]:
        return self.chunks()

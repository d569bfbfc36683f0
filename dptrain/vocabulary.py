"""The words that settings, files, the ledger and the code have in common, and what each task of a network is.

Every member is the text that is written and read: `Task.BINARY == "binary"`. A text on disk keeps its meaning for
ever: members are added, never renamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dptrain.errors import ConfigError


class Task(StrEnum):
    """What a network is asked about a record; :data:`TASKS` says what follows from it."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    MULTILABEL = "multilabel"
    SEGMENTATION = "segmentation"


class Labels(StrEnum):
    """What the label of a record is."""

    CLASS = "class"  # one class number
    FINDINGS = "findings"  # present or not, for each of several findings
    MASK = "mask"  # a class number at each place of the image


class Activation(StrEnum):
    """What turns logits into probabilities."""

    SIGMOID = "sigmoid"  # of each logit alone
    SOFTMAX = "softmax"  # over the classes


@dataclass(frozen=True)
class TaskSpec:
    """What follows from a task; everything else reads it here, so that a new task is a new row of :data:`TASKS`.

    Args:
        labels: what a record's label is.
        activation: logits -> probabilities.
        loss: class of :mod:`dptrain.models.losses` that gives one value a record.
        metric: the figure that a report states first.
        calibrates: whether temperature and sets of classes are fitted (one margin a record and class).
        tag: the task's name in model cards (Hugging Face's pipeline tags).
    """

    labels: Labels
    activation: Activation
    loss: str
    metric: str
    calibrates: bool = True
    tag: str = "image-classification"

    @property
    def one_logit(self) -> bool:
        """Two classes with one logit: the probability of the second one."""
        return self.labels is Labels.CLASS and self.activation is Activation.SIGMOID

    def label_shape(self, classes: int, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of one record's label: [], [C] or [1, *space].

        Args:
            image_shape: [C, *space] of one record.
        """
        match self.labels:
            case Labels.CLASS:
                return ()
            case Labels.FINDINGS:
                return (classes,)
            case Labels.MASK:
                return (1, *image_shape[1:])

    def outputs(self, classes: int) -> int:
        """How many outputs a network has (for each place of the image, where the label is a mask)."""
        if self.labels is Labels.MASK:
            return classes + 1  # the background
        return 1 if self.one_logit else classes

    def label_values(self, classes: int) -> int:
        """How many values an entry of a label can have: 0 … n − 1."""
        return 2 if self.one_logit or self.labels is Labels.FINDINGS else max(classes, 2)


TASKS = {
    Task.BINARY: TaskSpec(Labels.CLASS, Activation.SIGMOID, "BinaryLoss", "auroc"),
    Task.MULTICLASS: TaskSpec(Labels.CLASS, Activation.SOFTMAX, "MulticlassLoss", "auroc"),
    Task.MULTILABEL: TaskSpec(Labels.FINDINGS, Activation.SIGMOID, "MultilabelLoss", "auroc"),
    Task.SEGMENTATION: TaskSpec(
        Labels.MASK, Activation.SOFTMAX, "SegmentationLoss", "dice", calibrates=False, tag="image-segmentation"
    ),
}


def task_spec(task: str) -> TaskSpec:
    """What follows from a task. Raises ConfigError for one that is not known."""
    if task not in list(Task):
        raise ConfigError(f"task={task} is unknown.", remedy=f"Tasks: {', '.join(Task)}.")
    return TASKS[Task(task)]


class Format(StrEnum):
    """What a cohort's manifest and records are."""

    CSV = "csv"  # one row a record, which names its image
    DECATHLON = "decathlon"  # the JSON of the Medical Segmentation Decathlon
    DICOM = "dicom"  # a folder of DICOM files
    NPZ = "npz"  # arrays of one NumPy archive
    TABLE = "table"  # one row a record, which is the record


class Split(StrEnum):
    """The part of a cohort that a patient belongs to."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    VALIDATION = "validation"
    TEST = "test"


class Purpose(StrEnum):
    """What a grant of the ledger is for."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    AUDIT = "audit"


PICTURES = "pictures"  # what a permission may be for beside a purpose: pictures in a reconstruction attack


class BudgetKind(StrEnum):
    """How a budget gates."""

    OPEN = "open"  # any runs, chosen as one goes: RDP at one order
    PLANNED = "planned"  # exactly the declared mechanisms: their joint PLD


class Basis(StrEnum):
    """Why a grant was given."""

    BUDGET = "budget"  # charged to a budget
    PUBLIC = "public"  # public data, or none that gates
    DECLARED = "declared"  # an evaluation or audit that its run's plan declares
    OPEN = "open"  # an evaluation or audit of a cohort that is not locked
    PERMIT = "permit"  # the controller's leave to use a locked cohort


class RunStatus(StrEnum):
    """How far a run has come: `open` in the ledger is `running` in its folder, until it is closed or has crashed."""

    OPEN = "open"
    RUNNING = "running"
    CRASHED = "crashed"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"


CLOSED = (RunStatus.COMPLETE, RunStatus.INTERRUPTED)  # how a run that was closed can have ended


class Edition(StrEnum):
    """Who a report is for."""

    CONTROLLER = "controller"  # everything
    PUBLIC = "public"  # what the guarantee covers, and what the controller has released


LANGUAGES = ("en", "de")  # of reports
ITEMS = ("model", "metrics", "groups", "audit")  # what a decision may release


class Generator(StrEnum):
    """Where random bits come from."""

    CRYPTOGRAPHIC = "cryptographic"  # AES-128 in counter mode
    FAST = "fast"  # SFC64: by explicit choice only

"""run.json: the public facts of a run. Configuration, charges and what the guarantee covers; nothing measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Self

from dptrain.plain import Json
from dptrain.plan import Mechanism
from dptrain.records.parts import Curve
from dptrain.records.shape import LATE, NEEDED, Path, Public, Reader, Record, Share
from dptrain.vocabulary import ITEMS

RUN_SCHEMA = "dptrain.run/1"
PROGRAM = ("dptrain", "torch", "opacus", "monai", "numpy", "dp-accounting", "python", "platform", "device")


@dataclass(frozen=True, kw_only=True)
class Cohort(Record):
    """Whose data, as the ledger registered them."""

    name: Annotated[str | None, NEEDED] = None
    version: int | None = None
    unit: str | None = None
    unit_column: str | None = None
    units_per_person: int | None = None
    public: bool | None = None
    public_size: Annotated[int | None, NEEDED] = None
    owner: str | None = None
    source: str | None = None
    licence: str | None = None
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sweep(Record):
    """What all trials of a sweep have in common; the last two are known when the sweep has ended."""

    id: str | None = None
    trials: int | None = None
    epsilon_total: float | None = None


@dataclass(frozen=True, kw_only=True)
class Released(Record):
    """The controller's decision on what leaves the house.

    accept_exposed: the exposed share that was signed for. without_audit, without_advice: why there is none. accepted:
    the open checks that were accepted, by name.
    """

    items: Public[tuple[str, ...]] = ()
    recipient: Public[str | None] = None
    purpose: Public[str | None] = None
    advice: Public[str | None] = None
    accept_exposed: Annotated[Public[Share | None], LATE] = None
    without_audit: Annotated[Public[str | None], LATE] = None
    without_advice: Annotated[Public[str | None], LATE] = None
    accepted: Annotated[Public[tuple[str, ...]], LATE] = ()
    controller: Public[str | None] = None
    date: Public[str | None] = None
    entry: Public[str | None] = None

    def _settled(self, reader: Reader, path: Path | None) -> Self:
        return replace(self, items=tuple(item for item in self.items if item in ITEMS))


@dataclass(frozen=True, kw_only=True)
class Resume(Record):
    """How often the run began again, and how many paid steps that cost."""

    crashes: Public[int | None] = None
    steps_lost: Public[int | None] = None


@dataclass(frozen=True, kw_only=True)
class Gate(Record):
    """The budget before this run was granted, now, and what it has left (epsilon at the gate)."""

    kind: str | None = None
    accountant: str | None = None
    order: float | None = None
    budget_epsilon: float | None = None
    budget_delta: Share | None = None
    spent_before: float | None = None
    spent_after: float | None = None
    remaining: float | None = None
    minimum_charge: float | None = None
    locked: bool | None = None
    owner: str | None = None


@dataclass(frozen=True, kw_only=True)
class Charge(Record):
    """A mechanism that was charged (the fields of :class:`dptrain.plan.Mechanism`)."""

    sample_rate: Share | None = None
    noise_multiplier: float | None = None
    steps: int | None = None
    what: str = "training"

    @classmethod
    def of_mechanism(cls, mechanism: Mechanism) -> Self:
        """A mechanism as the file has it."""
        return cls(**asdict(mechanism))

    def mechanism(self) -> Mechanism:
        """As a mechanism again. Raises ConfigError or TypeError where its numbers are none of a mechanism."""
        return Mechanism(self.sample_rate, self.noise_multiplier, self.steps, self.what)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Inherited(Record):
    """An earlier run whose model this one starts from. epsilon: None where infinite."""

    run: str = ""
    epsilon: float | None = None
    mechanisms: tuple[Charge, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Privacy(Record):
    """What was promised, with unit, adjacency, delta and accountant. A null epsilon without `infinite` is unknown."""

    unit: str | None = None
    adjacency: str | None = None
    target_epsilon: float | None = None
    delta: Share | None = None
    n_delta: float | None = None
    epsilon: float | None = None
    infinite: bool = False
    accountant: str | None = None
    tradeoff: Curve | None = None
    tpr_at_1pct_fpr: Annotated[Share | None, LATE] = None
    tpr_at_5pct_fpr: Annotated[Share | None, LATE] = None
    tpr_at_10pct_fpr: Annotated[Share | None, LATE] = None
    auc_ceiling: Annotated[Share | None, LATE] = None
    advantage: Annotated[Share | None, LATE] = None
    mu: Annotated[float | None, LATE] = None
    group_epsilon: Annotated[dict[str, float], LATE] | None = None
    reconstruction: Annotated[dict[str, float], LATE] | None = None
    sample_rate: Share | None = None
    expected_batch_size: int | None = None
    normaliser: int | None = None
    steps_planned: int | None = None
    steps_run: int | None = None
    steps_charged: int | None = None
    noise_multiplier: float | None = None
    max_grad_norm: float | None = None
    max_records_per_patient: int | None = None
    views: int | None = None
    generator: str | None = None
    mechanisms: tuple[Charge, ...] = ()
    inherited: tuple[Inherited, ...] = ()
    epsilon_over_steps: tuple[tuple[int, float], ...] = ()

    def _settled(self, reader: Reader, path: Path | None) -> Self:
        """A finite guarantee needs its three numbers; an infinite or negative epsilon is none."""
        place = ("privacy",) if path is None else path
        for name in () if self.infinite else ("epsilon", "delta", "noise_multiplier"):
            if getattr(self, name) is None and ".".join((*place, name)) not in reader.faults:
                reader.fault((*place, name))
        if self.epsilon is not None and (self.epsilon < 0 or self.infinite):
            reader.fault((*place, "epsilon"))
            return replace(self, epsilon=None)
        return self


@dataclass(frozen=True, kw_only=True)
class Head(Record):
    """The newest entry of the ledger's chain, as the site signed it."""

    site: str | None = None
    entries: int | None = None
    hash: str | None = None
    time: str | None = None
    public_key: str | None = None
    signature: str | None = None


@dataclass(frozen=True, kw_only=True)
class LedgerPlace(Record):
    """The grant, and the head of the chain after it."""

    grant: str | None = None
    site: str | None = None
    head: Head = Head()
    witness: bool | None = None
    rollback_detectable: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Weights(Record):
    """What the network started from. source: random, package, public, ledger or file."""

    source: str | None = None
    sha256: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Model(Record):
    """Size and hash of the model that was kept. files: of the bundle's other files, by their path in it."""

    file: str | None = None
    sha256: str | None = None
    network: str | None = None
    train: str | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    changes: tuple[str, ...] = ()
    files: Annotated[dict[str, str] | None, LATE] = None


@dataclass(frozen=True, kw_only=True)
class Use(Record):
    """A use of patients' data beside the training steps, and what became of it."""

    what: Public[str] = ""
    status: Public[str] = ""
    note: Public[str] = ""


@dataclass(frozen=True, kw_only=True)
class Check(Record):
    """An assumption of the guarantee. by: `program` or `person`; status: passed, failed or not_checked."""

    id: Public[str] = ""
    name: Public[str] = ""
    status: Public[str] = ""
    by: Public[str] = ""
    note: Public[str] = ""


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """run.json. The later sections are there when the run has ended.

    plan: :meth:`dptrain.plan.Plan.to_dict`. calibration: the values of the run's calibration, or None.
    """

    SCHEMA = RUN_SCHEMA

    schema: str = RUN_SCHEMA
    id: Annotated[str | None, NEEDED] = None
    created: str | None = None
    finished: str | None = None
    status: Annotated[str | None, NEEDED] = None
    program: dict[str, str]
    recipe: str | None = None
    command: str | None = None
    task: str | None = None
    classes: tuple[str, ...] = ()
    plan: Json
    cohort: Cohort = Cohort()
    sweep: Sweep | None = None
    released: Released | None = None
    resume: Resume = Resume()
    gate: Annotated[Gate | None, LATE] = None
    config_sha256: Annotated[str | None, LATE] = None
    privacy: Annotated[Privacy | None, LATE] = None
    ledger: Annotated[LedgerPlace | None, LATE] = None
    weights: Annotated[Weights | None, LATE] = None
    model: Annotated[Model | None, LATE] = None
    calibration: Annotated[Json | None, LATE] = None
    not_covered: Annotated[tuple[Use, ...], LATE] = ()
    checks: Annotated[tuple[Check, ...], LATE] = ()

    def _settled(self, reader: Reader, path: Path | None) -> Self:
        if self.privacy is None:
            Privacy.from_json({}, reader, ("privacy",))  # its numbers are needed
        return self

    def to_json(self) -> Json:
        """As the file has it: one that has ended says also that it has no calibration."""
        values = super().to_json()
        if self.finished is not None and self.calibration is None:
            order = [*values]
            place = order.index("model") + 1 if "model" in values else len(order)
            rows = [*values.items()]
            return dict([*rows[:place], ("calibration", None), *rows[place:]])
        return values

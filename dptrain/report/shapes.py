"""facts.json, as types: what a report says, and who may read each field of it.

Every field declares itself: :data:`Public` (what the guarantee covers), :func:`After` (un-noised: shown once the
controller's decision names one of these items), or :data:`RESTRICTED` (the controller's edition alone). A field
inside an object or a row is seen at most where that is. What declares nothing, and what is not declared at all,
reaches no public edition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dptrain.plain import Json
from dptrain.records.metrics import METRIC_NAMES, Group
from dptrain.records.parts import Curve, Estimate
from dptrain.records.reading import Fault
from dptrain.records.run import PROGRAM, Check, Released, Resume, Use
from dptrain.records.shape import LATE, PUBLIC, RESTRICTED, After, Keys, Public, Record, Share
from dptrain.vocabulary import Edition

FACTS_SCHEMA = "dptrain.facts/1"
METRICS = After(("metrics",))
GROUPS = After(("groups",))
MEASURED = After(("metrics", "groups"))
AUDIT = After(("audit",))


def is_number(name: str) -> bool:
    """Whether a key is a number in digits: a rate, a prior, a count of persons."""
    return name.replace(".", "", 1).replace("e-", "", 1).isdigit()


@dataclass(frozen=True, kw_only=True)
class SweepFacts(Record):
    """The sweep that the run is a trial of."""

    trials: Public[int | None]
    epsilon_total: Public[float | None]


@dataclass(frozen=True, kw_only=True)
class RunFacts(Record):
    """What ran. The command names places inside the house."""

    id: Public[str | None]
    created: Public[str | None]
    finished: Public[str | None]
    status: Public[str | None]
    recipe: Public[str | None]
    command: Annotated[str | None, RESTRICTED]
    task: Public[str | None]
    classes: Public[tuple[str, ...]]
    program: Annotated[Public[dict[str, str]], Keys(PROGRAM.__contains__)]
    resume: Public[Resume]
    sweep: Public[SweepFacts | None]


@dataclass(frozen=True, kw_only=True)
class CohortFacts(Record):
    """Whose data."""

    name: Public[str | None]
    version: Public[int | None]
    unit: Public[str | None]
    unit_column: Public[str | None]
    public: Public[bool | None]
    public_size: Public[int | None]
    units_per_person: Public[int | None]
    owner: Public[str | None]
    source: Public[str | None]
    licence: Public[str | None]
    cautions: Public[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class MechanismFacts(Record):
    """A mechanism that was charged."""

    what: Public[str]
    sample_rate: Public[Share | None]
    noise_multiplier: Public[float | None]
    steps: Public[int | None]


@dataclass(frozen=True, kw_only=True)
class InheritedFacts(Record):
    """An earlier run whose model this one starts from."""

    run: Public[str]
    epsilon: Public[float | None]
    mechanisms: Public[tuple[MechanismFacts, ...]]


@dataclass(frozen=True, kw_only=True)
class PrivacyFacts(Record):
    """What was promised. epsilon: null where it is infinite, or not known."""

    sample_rate: Public[Share | None]
    tpr_at_1pct_fpr: Public[Share | None]
    tpr_at_5pct_fpr: Public[Share | None]
    tpr_at_10pct_fpr: Public[Share | None]
    auc_ceiling: Public[Share | None]
    advantage: Public[Share | None]
    target_epsilon: Public[float | None]
    n_delta: Public[float | None]
    max_grad_norm: Public[float | None]
    normaliser: Public[float | None]
    mu: Public[float | None]
    epsilon: Public[float | None]
    delta: Public[Share | None]
    noise_multiplier: Public[float | None]
    expected_batch_size: Public[int | None]
    steps_planned: Public[int | None]
    steps_run: Public[int | None]
    steps_charged: Public[int | None]
    max_records_per_patient: Public[int | None]
    views: Public[int | None]
    infinite: Public[bool]
    unit: Public[str | None]
    adjacency: Public[str | None]
    accountant: Public[str | None]
    generator: Public[str | None]
    mechanisms: Public[tuple[MechanismFacts, ...]]
    inherited: Public[tuple[InheritedFacts, ...]]
    epsilon_over_steps: Public[tuple[tuple[float, float], ...]]
    tradeoff: Public[Curve | None]
    group_epsilon: Annotated[Public[dict[str, float]], Keys(is_number)]
    reconstruction: Annotated[Public[dict[str, float]], Keys(is_number)]


@dataclass(frozen=True, kw_only=True)
class Pair(Record):
    """Of 100 models without the patient so many are wrongly called 'with', of 100 with the patient at most so many
    rightly; and what the audit measured there."""

    without: Public[int]
    with_at_most: Public[int | None]
    ceiling: Public[Share | None]
    measured_mean: Public[float | None]
    measured_max: Public[float | None]
    extrapolated: Public[bool | None]


@dataclass(frozen=True, kw_only=True)
class Odds(Record):
    """The guarantee in counts of 100. right_of_100: right guesses where half of the patients were in the training;
    without a model it is chance_of_100."""

    right_of_100: Public[int | None]
    chance_of_100: Public[int]
    strength: Public[str | None]
    pairs: Public[tuple[Pair, ...]]


@dataclass(frozen=True, kw_only=True)
class HistoryRow(Record):
    """One run of the cohort: what it was charged, and what was spent after it. epsilon: null where infinite."""

    run: Public[str]
    cohort: Public[str]
    date: Public[str]
    steps: Public[int | None]
    epsilon: Public[float | None]
    private: Public[bool]
    gate_after: Public[float | None]
    status: Public[str]
    this: Public[bool]


@dataclass(frozen=True, kw_only=True)
class BudgetFacts(Record):
    """What the cohort's budget was, is and has left (epsilon at the gate)."""

    kind: Public[str | None]
    accountant: Public[str | None]
    order: Public[float | None]
    epsilon: Public[float | None]
    delta: Public[Share | None]
    before: Public[float | None]
    this: Public[float | None]
    after: Public[float | None]
    remaining: Public[float | None]
    share_used: Public[float | None]
    minimum_charge: Public[float | None]
    locked: Public[bool | None]
    history: Public[tuple[HistoryRow, ...]]


@dataclass(frozen=True, kw_only=True)
class HeadFacts(Record):
    """The newest entry of the ledger's chain, as signed."""

    hash: Public[str | None]
    entries: Public[int | None]
    signature: Public[str | None]
    time: Public[str | None]
    public_key: Public[str | None]


@dataclass(frozen=True, kw_only=True)
class LedgerFacts(Record):
    """The grant, the head at the end of the training, and the one when the report was made (`now`)."""

    grant: Public[str | None]
    site: Public[str | None]
    witness: Public[bool | None]
    rollback_detectable: Public[bool | None]
    head: Public[HeadFacts]
    now: Public[HeadFacts | None]


@dataclass(frozen=True, kw_only=True)
class BindingFacts(Record):
    """What of the report was compared with the ledger, each by its name (:data:`dptrain.report.binding.CLAIMS`).

    ledger: `reached`, or `unreached` where it was not at hand or does not know the run. closed: whether the run's
    close carries the hash of its facts; null where that is not known.
    """

    ledger: Public[str]
    closed: Public[bool | None]
    agrees: Public[tuple[str, ...]]
    differs: Public[tuple[str, ...]]
    open: Public[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class ModelFacts(Record):
    """The network, and what it started from."""

    network: Public[str | None]
    train: Public[str | None]
    parameters: Public[int | None]
    trainable_parameters: Public[int | None]
    changes: Public[tuple[str, ...]]
    weights_source: Public[str | None]
    weights_sha256: Public[str | None]
    weights_note: Public[str | None]


@dataclass(frozen=True, kw_only=True)
class FileHash(Record):
    """A file's hash as run.json states it, beside that of what lies in the folder."""

    stated: Public[str | None]
    found: Public[str | None]
    match: Public[bool | None]


@dataclass(frozen=True, kw_only=True)
class UtilityGroup(Group):
    """One group of one column."""

    patients: Public[int | None] = None
    records: Public[int | None] = None
    metrics: Annotated[Public[dict[str, Estimate]], Keys(METRIC_NAMES.__contains__)]

    def to_json(self) -> Json:
        return Record.to_json(self)

    @classmethod
    def own_schema(cls, definitions: Json) -> Json:
        return super(Group, cls).own_schema(definitions)


@dataclass(frozen=True, kw_only=True)
class Gap(Record):
    """The best and the worst group of a column by the main metric."""

    column: Public[str]
    metric: Public[str | None]
    worst: Public[str]
    best: Public[str]
    difference: Public[float | None]
    intervals_overlap: Public[bool | None]


@dataclass(frozen=True, kw_only=True)
class Hidden(Record):
    """A cell that is withheld."""

    group: Public[str]
    value: Public[str]


@dataclass(frozen=True, kw_only=True)
class BinFacts(Record):
    """A bin of the reliability diagram, of enough records."""

    low: Public[float | None]
    high: Public[float | None]
    confidence: Public[float | None]
    observed: Public[float | None]
    count: Public[float | None]


@dataclass(frozen=True, kw_only=True)
class ConformalFacts(Record):
    """How often the sets hold the truth, and how large they are."""

    alpha: Public[float | None]
    threshold: Public[float | None]
    coverage: Public[float | None]
    set_size: Public[float | None]


@dataclass(frozen=True, kw_only=True)
class BootstrapFacts(Record):
    """How the intervals were made."""

    replicates: Public[int | None]
    level: Public[float | None]


@dataclass(frozen=True, kw_only=True)
class UtilityFacts(Record):
    """What the model is good for, and for whom. Not covered by epsilon."""

    split: Annotated[str | None, MEASURED]
    level: Annotated[str | None, MEASURED]
    patients: Annotated[int | None, METRICS]
    records: Annotated[int | None, METRICS]
    main: Annotated[str | None, MEASURED]
    overall: Annotated[dict[str, Estimate], METRICS, Keys(METRIC_NAMES.__contains__)]
    by_class: Annotated[dict[str, dict[str, Estimate]], METRICS]
    groups: Annotated[dict[str, dict[str, UtilityGroup]], GROUPS]
    gaps: Annotated[tuple[Gap, ...], GROUPS]
    suppressed: Annotated[tuple[Hidden, ...], GROUPS]
    reliability: Annotated[tuple[BinFacts, ...], METRICS]
    temperature: Annotated[float | None, METRICS]
    conformal: Annotated[ConformalFacts | None, METRICS]
    bootstrap: Annotated[BootstrapFacts, MEASURED]


@dataclass(frozen=True, kw_only=True)
class ExposedFacts(Record):
    """How many patients are exposed; null where too few models were trained to say. above: the AUC above which theirs
    is shown to lie; without it (older audits) whoever left a trace is called exposed."""

    count: Public[int | None]
    share: Public[Share | None]
    low: Public[Share | None]
    high: Public[Share | None]
    above: Annotated[Share | None, PUBLIC, LATE] = None


@dataclass(frozen=True, kw_only=True)
class TrueShareFacts(Record):
    """Limits of the share of patients whose true AUC is at least `auc`."""

    auc: Public[Share | None]
    low: Public[Share | None]
    high: Public[Share | None]


@dataclass(frozen=True, kw_only=True)
class SmallestFacts(Record):
    """The smallest AUC of one patient alone that such an audit sees in 8 of 10 cases."""

    trace: Public[Share | None]
    exposed: Public[Share | None]


@dataclass(frozen=True, kw_only=True)
class VerdictFacts(Record):
    """Patients by verdict."""

    exposed: Public[int | None]
    trace_shown: Annotated[int | None, PUBLIC, LATE] = None
    not_shown: Public[int | None]
    inconclusive: Public[int | None]


@dataclass(frozen=True, kw_only=True)
class ConfirmedFacts(Record):
    """Of those tested on fresh models, how many were confirmed."""

    tested: Public[int | None]
    confirmed: Public[int | None]


@dataclass(frozen=True, kw_only=True)
class AucFacts(Record):
    """AUC over patients. max_by_chance: what the largest stays below in 95 of 100 audits where nothing leaks; null in
    older audits."""

    mean: Public[float | None]
    median: Public[float | None]
    max: Public[float | None]
    max_by_chance: Public[float | None]
    low: Public[float | None]
    high: Public[float | None]


@dataclass(frozen=True, kw_only=True)
class BaselineFacts(Record):
    """AUC of each patient's best record: grows with the number of records where nothing leaks; easily mistaken for a
    risk, so never public."""

    mean: Annotated[float | None, RESTRICTED]
    max: Annotated[float | None, RESTRICTED]


@dataclass(frozen=True, kw_only=True)
class SurvivalFacts(Record):
    """Share of patients whose AUC is at least so high."""

    auc: Public[tuple[Share, ...]]
    share: Public[tuple[Share, ...]]


@dataclass(frozen=True, kw_only=True)
class ChanceFacts(Record):
    """The same for patients without any trace."""

    auc: Public[tuple[Share, ...]]
    null: Public[tuple[Share, ...]]


@dataclass(frozen=True, kw_only=True)
class RateFacts(Record):
    """True positive rates over patients at one false positive rate. ceiling: what the guarantee allows."""

    mean: Public[float | None]
    median: Public[float | None]
    max: Public[float | None]
    ceiling: Public[float | None]
    low: Public[float | None]
    high: Public[float | None]
    extrapolated: Public[bool]


@dataclass(frozen=True, kw_only=True)
class GroupRisk(Record):
    """The share of exposed patients of a group."""

    patients: Public[float | None]
    share: Public[Share | None]
    low: Public[Share | None]
    high: Public[Share | None]


@dataclass(frozen=True, kw_only=True)
class NewScanFacts(Record):
    """The attack with a record that no model was trained on."""

    auc: Public[float | None]
    low: Public[float | None]
    high: Public[float | None]


@dataclass(frozen=True, kw_only=True)
class CanaryFacts(Record):
    """The lower bound on epsilon that planted patients proved."""

    kind: Public[str | None]
    method: Public[str | None]
    count: Public[int | None]
    trainings: Public[int | None]
    epsilon_lower: Public[float | None]
    confidence: Public[float | None]
    broken: Public[bool | None]
    provable: Annotated[float | None, PUBLIC, LATE] = None


@dataclass(frozen=True, kw_only=True)
class AuditCheckFacts(Record):
    """One statistic of the test of the mechanism on made-up patients. confirmed: failed on fresh steps, too."""

    name: Public[str]
    p_value: Public[float | None]
    failed: Public[bool | None]
    confirmed: Public[bool | None]


@dataclass(frozen=True, kw_only=True)
class WithheldFacts(Record):
    """What is not said, since there are too few models."""

    what: Public[str]
    have: Public[float | None]
    need: Public[float | None]

    @property
    def is_rate(self) -> bool:
        """A rate whose extrapolation stands in its place, marked."""
        return self.what.startswith("tpr_at_")

    @property
    def is_of_design(self) -> bool:
        """What no number of models would tell; said where the tests of the promise are."""
        return self.what in ("canaries", "residual")


@dataclass(frozen=True, kw_only=True)
class AuditFacts(Record):
    """Measured risk, as counts. Not covered by epsilon."""

    game: Annotated[str | None, AUDIT]
    attack: Annotated[str | None, AUDIT]
    references: Annotated[int | None, AUDIT]
    patients: Annotated[int | None, AUDIT]
    exposed: Annotated[ExposedFacts, AUDIT]
    traced: Annotated[ExposedFacts | None, AUDIT, LATE] = None
    true_auc: Annotated[tuple[TrueShareFacts, ...], AUDIT, LATE] = ()
    smallest_seen: Annotated[SmallestFacts | None, AUDIT, LATE] = None
    verdicts: Annotated[VerdictFacts, AUDIT]
    confirmed: Annotated[ConfirmedFacts | None, AUDIT]
    roc: Annotated[Curve | None, AUDIT]
    auc: Annotated[AucFacts, AUDIT]
    baseline_max: Annotated[BaselineFacts, RESTRICTED]
    survival: Annotated[SurvivalFacts | None, AUDIT]
    survival_by_chance: Annotated[ChanceFacts | None, AUDIT]
    tpr_at: Annotated[dict[str, RateFacts], AUDIT, Keys(is_number)]
    groups: Annotated[dict[str, dict[str, GroupRisk]], GROUPS]
    suppressed: Annotated[tuple[Hidden, ...], GROUPS]
    new_scan: Annotated[NewScanFacts | None, AUDIT]
    canary: Annotated[CanaryFacts | None, AUDIT]
    checks: Annotated[tuple[AuditCheckFacts, ...], AUDIT, LATE] = ()
    withheld: Annotated[tuple[WithheldFacts, ...], AUDIT]
    masks_sha256: Annotated[str | None, AUDIT]

    @property
    def missing(self) -> tuple[WithheldFacts, ...]:
        """What more models would tell, and nothing stands in its place."""
        return tuple(row for row in self.withheld if not (row.is_rate or row.is_of_design))

    @property
    def extrapolated(self) -> tuple[WithheldFacts, ...]:
        """Rates whose count is withheld and whose extrapolation stands in its place, marked."""
        return tuple(row for row in self.withheld if row.is_rate)


@dataclass(frozen=True, kw_only=True)
class AttackRowFacts(Record):
    """One reconstruction game under one protection (:class:`dptrain.records.attack.AttackRow`)."""

    game: Public[str | None]
    arm: Public[str | None]
    epsilon: Public[float | None]
    coordinator: Public[str | None]
    returns: Public[str | None]
    prior: Public[str | None]
    draws: Public[str | None]
    patients_in_message: Public[int | None]
    candidates: Public[int | None]
    trials: Public[int | None]
    success: Public[Share | None]
    low: Public[Share | None]
    high: Public[Share | None]
    chance: Public[Share | None]
    bound: Public[Share | None]
    ssim: Public[float | None]
    nearest_other: Public[float | None]
    guess: Public[float | None]
    above: Public[bool | None]


@dataclass(frozen=True, kw_only=True)
class AttackFacts(Record):
    """What reconstruction attacks reached, as shares. Not covered by epsilon; no pictures."""

    rows: Annotated[tuple[AttackRowFacts, ...], AUDIT]


@dataclass(frozen=True, kw_only=True)
class Facts(Record):
    """Every number of a report stands here once; HTML, PDF, registry entry and model card are made from it. null: not
    known, or (epsilon) infinite."""

    SCHEMA = FACTS_SCHEMA

    schema: Public[str] = FACTS_SCHEMA
    edition: Public[str]
    made: Public[str]
    program: Public[str]
    run: Public[RunFacts]
    cohort: Public[CohortFacts]
    privacy: Public[PrivacyFacts]
    odds: Public[Odds]
    budget: Public[BudgetFacts]
    ledger: Public[LedgerFacts]
    model: Public[ModelFacts]
    integrity: Public[dict[str, FileHash]]
    binding: Public[BindingFacts]
    not_covered: Public[tuple[Use, ...]]
    checks: Public[tuple[Check, ...]]
    utility: Annotated[UtilityFacts | None, MEASURED]
    audit: Annotated[AuditFacts | None, AUDIT]
    attack: Annotated[AttackFacts | None, AUDIT, LATE] = None
    released: Public[Released | None]
    missing: Public[tuple[Fault, ...]]
    complete: Public[bool]
    warnings: Public[tuple[str, ...]]
    verdict: Public[str]
    risks: Public[tuple[str, ...]]
    open_checks: Public[int]
    passed_checks: Public[int]

    @property
    def is_controllers(self) -> bool:
        """Whether this is the controller's edition."""
        return self.edition == Edition.CONTROLLER

    @property
    def items(self) -> frozenset[str]:
        """What the recorded decision names."""
        return frozenset(() if self.released is None else self.released.items)

    @property
    def mismatches(self) -> list[str]:
        """Files whose hash is not the stated one."""
        return [name for name, row in self.integrity.items() if row.match is False]

    @property
    def exposed(self) -> int | None:
        """How many patients the audit calls exposed; None: there is no audit, or it does not say."""
        return None if self.audit is None else self.audit.exposed.count


COHORT_SCHEMA = "dptrain.cohort-facts/1"


@dataclass(frozen=True, kw_only=True)
class CohortPlace(Record):
    """A cohort as the ledger registered it."""

    name: str
    version: int | None
    unit: str
    owner: str
    public: bool
    public_size: int | None
    overlaps: tuple[str, ...]
    cautions: tuple[str, ...]
    source: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class Granted(Record):
    """A signed budget."""

    date: str
    kind: str | None
    epsilon: float | None
    reason: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class CohortBudget(Record):
    """What all budgets of a cohort come to."""

    kind: str | None
    epsilon: float | None
    delta: float | None
    order: float | None
    spent: float | None
    remaining: float | None
    minimum_charge: float | None
    locked: bool | None
    share_used: float | None
    granted: tuple[Granted, ...]


@dataclass(frozen=True, kw_only=True)
class Forecast(Record):
    """What so many more runs like the last would make of the budget."""

    runs: int
    like: str
    spent: float
    remaining: float
    possible: bool


@dataclass(frozen=True, kw_only=True)
class CohortHead(Record):
    """The newest entry of the ledger's chain."""

    hash: str
    entries: int
    time: str


@dataclass(frozen=True, kw_only=True)
class CohortReport(Record):
    """facts.json of the report on a cohort; it stays in the house."""

    SCHEMA = COHORT_SCHEMA

    schema: str = COHORT_SCHEMA
    made: str
    program: str
    cohort: CohortPlace
    budget: CohortBudget
    history: tuple[HistoryRow, ...]
    forecast: tuple[Forecast, ...]
    head: CohortHead | None
    site: str
    witness: bool

"""run.json: the public facts of a run. Only configuration, charges and what the guarantee covers; no metrics."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from dptrain import __version__, accounting
from dptrain.files import file_sha256
from dptrain.ledger.facts import GateFacts
from dptrain.ledger.grants import charged
from dptrain.models import ModelStore
from dptrain.plan import Plan
from dptrain.records import RunFolder
from dptrain.records.bound import metadata_sha256
from dptrain.records.parts import Curve
from dptrain.records.run import (
    Charge,
    Check,
    Cohort,
    Gate,
    Head,
    Inherited,
    LedgerPlace,
    Model,
    Privacy,
    Resume,
    Run,
    Sweep,
    Use,
)
from dptrain.settings import Settings
from dptrain.settings.kept import without_password
from dptrain.training.planning import finite, promise
from dptrain.training.sweeps import sweep_id
from dptrain.vocabulary import Generator, RunStatus

if TYPE_CHECKING:
    from dptrain.ledger import CohortStatus
    from dptrain.ledger.state import RunState


def program(device: str) -> dict[str, str]:
    """Versions of what ran."""
    return {
        "dptrain": __version__,
        **{name: version(name) for name in ("torch", "opacus", "monai", "numpy", "dp-accounting")},
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "device": device,
    }


def privacy(
    plan: Plan, target_epsilon: float, *, run: int, paid: int, inherited: list[Inherited], units: int = 1
) -> Privacy:
    """The privacy section: what was promised, stated with unit, adjacency, delta and accountant."""
    mechanisms = charged(plan, paid)
    released = (*(charge.mechanism() for earlier in inherited for charge in earlier.mechanisms), *mechanisms)
    said: dict[str, Any] = {"epsilon": 0.0, "infinite": False, "accountant": "PLD"}
    if released:
        said = promise(released, plan.delta, units)
    curve = said.pop("tradeoff", None)
    over = accounting.epsilon_over_steps(mechanisms, plan.delta) if mechanisms and plan.private else []
    return Privacy(
        unit=plan.unit,
        adjacency="add_remove",
        target_epsilon=finite(target_epsilon),
        delta=plan.delta,
        n_delta=plan.delta * plan.public_size,
        **said,
        tradeoff=None if curve is None else Curve(**curve),
        sample_rate=plan.sample_rate,
        expected_batch_size=plan.expected_batch_size,
        normaliser=plan.expected_batch_size,
        steps_planned=plan.steps,
        steps_run=run,
        steps_charged=paid,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=finite(plan.max_grad_norm),
        max_records_per_patient=plan.max_records_per_patient,
        views=plan.views,
        generator=plan.generator,
        mechanisms=tuple(map(Charge.of_mechanism, mechanisms)),
        inherited=tuple(inherited),
        epsilon_over_steps=tuple((int(step), float(epsilon)) for step, epsilon in over),
    )


NOT_COVERED = (
    ("test and validation patients", "not_covered", "They are read after training to measure; they have no epsilon."),
    (
        "test metrics and group tables",
        "not_covered",
        "Un-noised; they stay restricted until the controller releases them.",
    ),
    ("audit results", "not_covered", "Un-noised; they stay restricted until the controller releases aggregates."),
    ("normalisation constants", "public", "Fixed in the configuration; none was computed from the cohort."),
    ("training length and final weights", "public", "Fixed before training; no early stopping on private data."),
)


def not_covered(plan: Plan, weights_kind: str, weights_note: str) -> tuple[Use, ...]:
    """Everything that touched private data beside the training steps, with what became of it (docs/guarantee.md)."""
    rows = [Use(what=what, status=status, note=note) for what, status, note in NOT_COVERED]
    if plan.calibration_noise_multiplier is not None:
        rows.append(
            Use(
                what="temperature and conformal sets",
                status="charged",
                note="Fitted to one noisy histogram that is part of the charge.",
            )
        )
    status = "charged" if weights_kind == "ledger" else "public"
    rows.append(Use(what="starting weights", status=status, note=weights_note))
    return tuple(rows)


def checks(plan: Plan, *, witness: bool) -> tuple[Check, ...]:
    """Assumptions: a tick for each that the program holds by construction or refused to go on without (a run that
    fails one of these has no facts), an open box for each that a person must check."""

    def row(identity: str, name: str, done: bool | None, by: str, note: str = "") -> Check:
        status = "not_checked" if done is None else "passed" if done else "failed"
        return Check(id=identity, name=name, status=status, by=by, note=note)

    unpredictable = plan.generator == Generator.CRYPTOGRAPHIC
    return (
        row("one_plan", "Sampler, clipping, noise and charge came from one plan", True, "program"),
        row("charged_first", "Every step was paid before it ran", True, "program"),
        row(
            "separable",
            "No patient's gradient depends on another patient (test on made-up data)",
            True,
            "program",
        ),
        row("rules", "Every trained parameter has an exact gradient rule", True, "program"),
        row("poisson", "Patients were drawn independently by a cryptographic generator", True, "program"),
        row("noise", "Noise came from a cryptographic generator", unpredictable, "program"),
        row("rollback", "The ledger is held against a witness head", True if witness else None, "program"),
        row("unit", "One unit is one person (ids were joined correctly, issuer by issuer)", None, "person"),
        row(
            "size",
            "The declared number of patients is public and was not taken from this cohort's count",
            None,
            "person",
        ),
        row("weights", "Starting weights declared public were not trained on these patients", None, "person"),
        row(
            "constants",
            "Transforms, class names and ranges in the configuration are public knowledge",
            None,
            "person",
        ),
        row("access", "Only the controller reads the folder `restricted`", None, "person"),
    )


def gate(facts: GateFacts, status: CohortStatus, *, spent_before: float | None) -> Gate:
    """What the budget was before this run was granted, is and has left (epsilon at the gate)."""
    return Gate(
        kind=facts.kind,
        accountant=facts.accountant or "none (public cohort)",
        order=facts.order,
        budget_epsilon=finite_or_none(facts.budget_epsilon),
        budget_delta=facts.budget_delta,
        spent_before=finite_or_none(spent_before),
        spent_after=finite_or_none(facts.spent_after),
        remaining=finite_or_none(facts.remaining),
        minimum_charge=finite_or_none(facts.minimum_charge),
        locked=facts.locked,
        owner=status.owner,
    )


def inherited(run: RunState) -> Inherited:
    """An earlier run whose model this one starts from: its charge is this one's as well."""
    plan = Plan.from_dict(run.plan)
    mechanisms, delta = charged(plan, run.steps_charged), plan.delta
    return Inherited(
        run=run.id,
        epsilon=finite(accounting.pld_epsilon(mechanisms, delta)),
        mechanisms=tuple(map(Charge.of_mechanism, mechanisms)),
    )


def finite_or_none(value: float | None) -> float | None:
    """None stays None; infinity becomes None."""
    return None if value is None else finite(value)


def ledger(grant: int, head: Head, witness: bool) -> LedgerPlace:
    """The entry that granted the run, and the signed head of the chain after its close."""
    return LedgerPlace(
        grant=str(grant),
        site=head.site,
        head=head,
        witness=witness,
        rollback_detectable=witness,
    )


def base(
    identity: str, created: str, settings: Settings, plan: Plan, status: CohortStatus, command: str, device: str
) -> Run:
    """What is known before the first step."""
    sweep = sweep_id()
    return Run(
        id=identity,
        created=created,
        status=RunStatus.RUNNING,
        program=program(device),
        recipe=settings.name,
        command=without_password(command),
        task=settings.data.task,
        classes=tuple(settings.data.classes),
        plan=plan.to_dict(),
        cohort=Cohort(
            name=status.name,
            version=status.version,
            unit=status.unit,
            unit_column=settings.data.columns.patient,
            units_per_person=settings.data.units_per_person,
            public=status.public,
            public_size=status.public_size,
            owner=status.owner,
            source=status.source or settings.data.source,
            licence=status.licence or settings.data.licence,
            cautions=tuple(status.cautions),
        ),
        sweep=None if sweep is None else Sweep(id=sweep),
        resume=Resume(crashes=0, steps_lost=0),
    )


def model_facts(folder: RunFolder, network: Any, trainable: Any, settings: Settings, changes: list[Any]) -> Model:
    """Size and hash of the model that was kept."""
    rest = [path for path in sorted(folder.model.rglob("*")) if path.is_file() and path != folder.weights]
    return Model(
        file=folder.name_of(folder.weights),
        sha256=ModelStore(folder.weights).sha256(),
        network=str(settings.model.network.get("_target_", "")),
        train=settings.model.train,
        parameters=sum(p.numel() for p in network.parameters()),
        trainable_parameters=sum(p.numel() for p in trainable.parameters() if p.requires_grad),
        changes=tuple(str(change) for change in changes),
        files={
            path.relative_to(folder.model).as_posix(): (
                metadata_sha256(path) if path == folder.metadata else file_sha256(path)
            )
            for path in rest
        },
    )

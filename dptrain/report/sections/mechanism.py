"""How the protection works and on what it rests; and which uses of patients' data it does not cover."""

from __future__ import annotations

from dptrain.records.run import Check
from dptrain.report.blocks import Block, Section, bullets, heading, p, rows, section, table, tick, ticks
from dptrain.report.judgement import person_checks
from dptrain.report.language import Language
from dptrain.report.phrases import unit_word
from dptrain.report.shapes import Facts, InheritedFacts, MechanismFacts


def not_covered(facts: Facts, t: Language) -> Section:
    """Everything that touched patients beside the training steps, and what became of it."""
    body = []
    for row in facts.not_covered:
        note = t.known("covered.note", row.what) if t.has(f"covered.note.{row.what}") else row.note
        if row.what == "starting weights":
            note = t.quote(row.note) if row.note else ""
        body.append([t.known("covered", row.what), t.known("covered.status", row.status), note])
    blocks = [p(t("not_covered.sentence"))]
    if body:
        head = [t("not_covered.what"), t("not_covered.status"), t("not_covered.why")]
        blocks.append(table(t("not_covered.table"), head, body, text_columns=True))
    blocks.append(bullets([t(f"not_covered.always.{n}") for n in (1, 2, 3)]))
    return section("not_covered", t, blocks)


def mechanism(facts: Facts, t: Language) -> Section:
    """How the protection works, and on what it rests."""
    program = [row for row in facts.checks if row.by == "program"]
    open_boxes = [tick("open", t.known("check", row.id), row.note) for row in person_checks(facts.checks)]
    blocks = [
        p(t("mechanism.sentence", unit=unit_word(facts, t))),
        rows([*_training(facts, t), *_further(facts, t), *_network(facts, t)]),
        heading(t("mechanism.checked")),
        ticks([_tick(row, t) for row in program]) if program else p(t("mechanism.checked.none")),
        heading(t("mechanism.person")),
        p(t("mechanism.person.text")),
        ticks(open_boxes),
    ]
    return section("mechanism", t, blocks)


def _training(facts: Facts, t: Language) -> list[tuple[str, str]]:
    privacy = facts.privacy
    steps = t("unknown")
    if privacy.steps_planned is not None:
        steps = t(
            "mechanism.steps.value",
            planned=t.integer(privacy.steps_planned),
            run=t.integer(privacy.steps_run),
            charged=t.integer(privacy.steps_charged),
        )
    return [
        (t("mechanism.batch"), t.integer(privacy.expected_batch_size)),
        (t("mechanism.rate"), t.shortest(privacy.sample_rate)),
        (t("mechanism.noise"), t.number(privacy.noise_multiplier, 3)),
        (t("mechanism.clip"), t.shortest(privacy.max_grad_norm, 3)),
        (t("mechanism.steps"), steps),
        (t("mechanism.records"), t.integer(privacy.max_records_per_patient)),
        (t("mechanism.views"), t.integer(privacy.views)),
        (t("mechanism.generator"), t.known("generator", privacy.generator)),
    ]


def _further(facts: Facts, t: Language) -> list[tuple[str, str]]:
    """What was charged beside the training, and what the starting weights bring along."""
    also = [row for row in facts.privacy.mechanisms if row.what != "training"]
    return [
        *((t("mechanism.also"), _also(row, t)) for row in also),
        *((t("mechanism.inherited"), _inherited(row, t)) for row in facts.privacy.inherited),
    ]


def _also(row: MechanismFacts, t: Language) -> str:
    return t(
        "mechanism.also.value",
        what=t.known("mechanism_name", row.what),
        noise=t.number(row.noise_multiplier, 3),
        steps=t.integer(row.steps),
    )


def _inherited(row: InheritedFacts, t: Language) -> str:
    return t("mechanism.inherited.value", run=row.run, epsilon=t.epsilon(row.epsilon, row.epsilon is None))


def _network(facts: Facts, t: Language) -> list[tuple[str, str]]:
    model = facts.model
    parameters = weights = ""
    if model.parameters is not None:
        trainable, every = t.integer(model.trainable_parameters), t.integer(model.parameters)
        parameters = t("mechanism.parameters.value", trainable=trainable, all=every)
    if model.weights_source:
        note = f": {t.quote(model.weights_note)}" if model.weights_note else ""
        weights = t.known("weights_source", model.weights_source) + note
    return [
        (t("mechanism.network"), model.network or ""),
        (t("mechanism.parameters"), parameters),
        (t("mechanism.weights"), weights),
        (t("mechanism.classes"), ", ".join(facts.run.classes)),
    ]


def _tick(row: Check, t: Language) -> Block:
    text = t(f"check.{row.id}") if t.has(f"check.{row.id}") else t.quote(row.name or row.id)
    state = row.status if row.status in ("passed", "failed", "not_checked") else "not_checked"
    return tick(state, text, row.note)

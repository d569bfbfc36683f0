"""What the guarantee means: odds first, then the curve, then (ε, δ)."""

from __future__ import annotations

from dptrain.report import figures
from dptrain.report.blocks import Block, Section, bullets, figure, heading, p, rows, section, table
from dptrain.report.language import Language
from dptrain.report.phrases import unit_word
from dptrain.report.shapes import Facts, Pair


def promise(facts: Facts, t: Language) -> Section:
    """What the guarantee means."""
    privacy, audit = facts.privacy, facts.audit
    measured = audit is not None and audit.roc is not None
    if privacy.infinite:
        blocks = [p(t("promise.infinite"))]
        if measured:
            blocks.append(_tradeoff(facts, "open", t))
        return section("promise", t, blocks)
    if privacy.epsilon is None:
        return section("promise", t, [p(t("promise.unknown"))])
    blocks = [*_odds(facts, t), *_table(facts, t)]
    if privacy.tradeoff is not None:
        ending = "measured" if measured else "alone"
        blocks.append(_tradeoff(facts, ending, t, epsilon=t.epsilon(privacy.epsilon)))
    blocks += [heading(t("promise.formal")), *_formal(facts, t)]
    if len(privacy.epsilon_over_steps) > 1:
        blocks.append(figure("epsilon_over_steps", t, epsilon=t.epsilon(privacy.epsilon_over_steps[-1][1])))
    blocks += [heading(t("promise.not")), bullets([t(f"promise.not.{n}") for n in (1, 2, 3)])]
    return section("promise", t, blocks)


def _odds(facts: Facts, t: Language) -> list[Block]:
    odds = facts.odds
    pair = odds.pairs[1]
    blocks = [p(t("promise.setting"))]
    if pair.with_at_most is not None:
        values = {"without": t.integer(pair.without), "with_": t.integer(pair.with_at_most)}
        blocks += [p(t("promise.pair", **values)), figure("odds", t, **values)]
    if odds.right_of_100 is not None:
        guess = t("promise.guess", right=t.integer(odds.right_of_100), chance=t.integer(odds.chance_of_100))
        blocks.append(p(guess))
    return blocks


def _table(facts: Facts, t: Language) -> list[Block]:
    """Wrong calls of 100, right ones at most, and what the audit measured where it measured."""
    pairs = facts.odds.pairs
    measured = any(row.measured_mean is not None for row in pairs)
    head = [t("promise.table.without"), t("promise.table.ceiling")]
    if measured:
        head += [t("promise.table.mean"), t("promise.table.max")]
    body = [_line(row, measured, t) for row in pairs if row.ceiling is not None]
    if not body:
        return []
    note = t("promise.table.note")
    if measured and any(row.extrapolated for row in pairs):
        marked = facts.audit.extrapolated if facts.audit else ()
        need = max((row.need or 0 for row in marked), default=None)
        note = t("promise.table.note.extrapolated", need=t.integer(need))
    return [table(t("promise.table"), head, body, note)]


def _line(row: Pair, measured: bool, t: Language) -> list[str]:
    line = [t.integer(row.without), _times_100(row.ceiling, t)]
    if measured:
        star = " *" if row.extrapolated else ""
        line += [_times_100(row.measured_mean, t) + star, _times_100(row.measured_max, t) + star]
    return line


def _times_100(value: float | None, t: Language) -> str:
    return "–" if value is None else t.number(100 * value, 1)


def _formal(facts: Facts, t: Language) -> list[Block]:
    """(ε, δ) and its readings."""
    privacy, units = facts.privacy, facts.cohort.units_per_person or 1
    statement = t(
        "promise.statement",
        epsilon=t.epsilon(privacy.epsilon),
        delta=t.power(privacy.delta),
        unit=unit_word(facts, t),
        adjacency=t.known("adjacency", privacy.adjacency),
        accountant=privacy.accountant or t("unknown"),
    )
    n_delta = None if privacy.n_delta is None else t("promise.n_delta.value", value=t.shortest(privacy.n_delta))
    together = "promise.group.units" if units > 1 else "promise.group"
    pairs = [
        (t("promise.mu"), _or_nothing(privacy.mu, 2, t)),
        (t("promise.auc"), _or_nothing(privacy.auc_ceiling, 3, t)),
        (t("promise.advantage"), _or_nothing(privacy.advantage, 3, t)),
        (t("promise.n_delta"), n_delta or ""),
    ]
    for k, value in privacy.group_epsilon.items():
        pairs.append((t(together, k=k), t("promise.group.value", epsilon=t.epsilon(value))))
    for kappa, value in privacy.reconstruction.items():
        posterior = t("promise.reconstruction.value", posterior=t.percent(value, 1))
        pairs.append((t("promise.reconstruction", prior=_percent_key(kappa, t)), posterior))
    return [p(statement), rows(pairs)]


def _or_nothing(value: float | None, digits: int, t: Language) -> str:
    return "" if value is None else t.number(value, digits)


def _percent_key(kappa: str, t: Language) -> str:
    """A share that is the key of a table, as per cent with the decimals it needs."""
    share = float(kappa) if kappa.replace(".", "", 1).replace("e-", "", 1).isdigit() else None
    return kappa if share is None else t.percent(share, 0 if share >= 0.01 else 1)


def _tradeoff(facts: Facts, ending: str, t: Language, **values: object) -> Block:
    """The trade-off figure; its words name the curve of the planted patients where that is drawn."""
    block = figure(f"tradeoff_{ending}", t, **values)
    bound = figures.canary_bound(facts)
    if bound is not None:
        for part in ("caption", "alt"):
            block[part] += " " + t(f"figure.tradeoff_canary.{part}", bound=t.number(bound, 2))
    return block

"""What the report says, in order: facts -> sections of plain blocks, in one language.

Both faces for people (HTML and PDF) set these same blocks, so they cannot differ. A block is a dictionary
with a `kind`; all texts in it are plain text, escaped by whoever sets them.
"""

from __future__ import annotations

from typing import Any

from dptrain.report import figures
from dptrain.report.facts import Facts, extrapolated, person_checks
from dptrain.report.frameworks import frameworks
from dptrain.report.language import Language
from dptrain.vocabulary import Edition

Block = dict[str, Any]
Section = dict[str, Any]
METRIC_DIGITS = 3


def document(facts: Facts, t: Language) -> dict[str, Any]:
    """The whole report: title, running lines, labels and sections."""
    sections = [
        decision(facts, t),
        promise(facts, t),
        budget(facts, t),
        risk(facts, t),
        utility(facts, t),
        not_covered(facts, t),
        mechanism(facts, t),
        frameworks(facts, t),
        integrity(facts, t),
        signature(facts, t),
        glossary(t),
    ]
    name = facts["run"]["recipe"] or facts["cohort"]["name"] or facts["run"]["id"] or t("unknown")
    return {
        "lang": t.lang,
        "title": t("title"),
        "subject": name,
        "edition": t(f"edition.{facts['edition']}"),
        "edition_note": t(f"edition.{facts['edition']}.note"),
        "running": t("running", run=facts["run"]["id"] or t("unknown")),
        "made": t("made", date=t.date(facts["made"]), version=facts["program"]),
        "contents": t("contents"),
        "page": t("page"),
        "mark": t("mark"),
        "tick": {state: t(f"tick.{state}") for state in ("passed", "failed", "not_checked", "open")},
        "blank": t("blank"),
        "see": t("see"),
        "sections": [section for section in sections if section["blocks"]],
    }


def section(identity: str, t: Language, blocks: list[Block], *, marked: bool = False) -> Section:
    return {"id": identity, "title": t(f"{identity}.title"), "marked": marked, "blocks": blocks}


def p(text: str) -> Block:
    """A paragraph."""
    return {"kind": "p", "text": text}


def heading(text: str) -> Block:
    """A heading inside a section."""
    return {"kind": "heading", "text": text}


def rows(pairs: list[tuple[str, str]]) -> Block:
    """Names and values."""
    return {"kind": "rows", "rows": [list(pair) for pair in pairs if pair[1]]}


def table(caption: str, head: list[str], body: list[list[str]], note: str = "") -> Block:
    """A table; the first column names the row, the others are set to the right."""
    return {"kind": "table", "caption": caption, "head": head, "rows": body, "note": note}


def figure(name: str, t: Language, **values: object) -> Block:
    """A drawing by name, with caption and text alternative."""
    return {
        "kind": "figure",
        "name": name,
        "caption": t(f"figure.{name}.caption", **values),
        "alt": t(f"figure.{name}.alt", **values),
    }


def bullets(texts: list[str]) -> Block:
    """A list."""
    return {"kind": "list", "items": texts}


def blank(label: str, lines: int = 1) -> Block:
    """A named space for a person to fill in."""
    return {"kind": "blank", "label": label, "lines": lines}


def unit_word(facts: Facts, t: Language) -> str:
    """The unit of protection as a word of the language."""
    return t.known("unit", facts["privacy"]["unit"] or facts["cohort"]["unit"])


def guarantee(facts: Facts, t: Language) -> str:
    """ε = 7.98, δ = 10⁻⁵."""
    privacy = facts["privacy"]
    if privacy["infinite"]:
        return "ε = ∞"
    if privacy["epsilon"] is None:
        return t("unknown")
    return t("guarantee.short", epsilon=t.epsilon(privacy["epsilon"]), delta=t.power(privacy["delta"]))


def decision(facts: Facts, t: Language) -> Section:
    """The first page."""
    run, cohort, released = facts["run"], facts["cohort"], facts["released"] or {}
    warnings = [
        {"tone": "bad" if name in BAD else "warn", "title": t(f"warning.{name}"), "text": _warning(name, facts, t)}
        for name in facts["warnings"]
    ]
    task = t.known("task", run["task"])
    what = t("decision.what.value", task=task, classes=", ".join(run["classes"]) or t("unknown"))
    whom = t(
        "decision.whom.value",
        cohort=cohort["name"] or t("unknown"),
        size=t.integer(cohort["public_size"]),
        unit=unit_word(facts, t),
    )
    blocks: list[Block] = []
    if warnings:
        blocks.append({"kind": "warnings", "items": warnings})
    verdict = facts["verdict"]
    blocks += [
        {
            "kind": "verdict",
            "tone": {"broken": "bad", "mismatch": "bad", "incomplete": "bad", "none": "bad", "exposed": "warn"}.get(
                verdict, "warn" if verdict == "unmeasured" or facts["odds"]["strength"] == "weak" else "plain"
            ),
            "label": t("decision.verdict"),
            "text": " ".join([t(f"verdict.{verdict}", **_verdict_values(facts, t)), t("verdict.person")]),
        },
        {"kind": "numbers", "items": _numbers(facts, t)},
        rows(
            [
                (t("decision.what"), what),
                (t("decision.whom"), whom),
                (t("decision.owner"), cohort["owner"] or ""),
                (t("decision.benefit"), _benefit(facts, t)),
                (t("decision.purpose"), released.get("purpose") or t("decision.blank")),
                (t("decision.recipient"), released.get("recipient") or t("decision.blank")),
                (
                    t("decision.run"),
                    t("decision.run.value", run=run["id"] or t("unknown"), date=t.date(run["created"])),
                ),
            ]
        ),
        heading(t("decision.risks")),
        bullets([_risk(name, facts, t) for name in facts["risks"]]),
    ]
    if facts["missing"]:
        blocks += [heading(t("decision.missing")), bullets([_missing(row, t) for row in facts["missing"]])]
    return section("decision", t, blocks)


BAD = {"guarantee_broken", "incomplete", "hash_mismatch", "infinite", "check_failed"}


def _verdict_values(facts: Facts, t: Language) -> dict[str, str]:
    odds, audit = facts["odds"], facts["audit"] or {}
    canary = audit.get("canary") or {}
    return {
        "right": t.integer(odds["right_of_100"]),
        "chance": t.integer(odds["chance_of_100"]),
        "strength": t(f"strength.{odds['strength']}") if odds["strength"] else t("unknown"),
        "exposed": t.integer((audit.get("exposed") or {}).get("count")),
        "patients": t.integer(audit.get("patients")),
        "bound": t.number(canary.get("epsilon_lower"), 2),
        "epsilon": t.epsilon(facts["privacy"]["epsilon"], facts["privacy"]["infinite"]),
    }


def _numbers(facts: Facts, t: Language) -> list[Block]:
    """The three numbers of the first page: promised, measured, spent."""
    odds, audit, spent = facts["odds"], facts["audit"], facts["budget"]
    promised = t("number.promised.value", right=t.integer(odds["right_of_100"])) if odds["right_of_100"] else "–"
    items = [
        {
            "value": promised,
            "label": t("number.promised"),
            "note": t("number.promised.note", guarantee=guarantee(facts, t), chance=t.integer(odds["chance_of_100"])),
        }
    ]
    if audit is None or audit["exposed"]["count"] is None:
        key = "number.measured.none" if facts["edition"] == Edition.CONTROLLER else "number.measured.unreleased"
        key = key if audit is None else "number.measured.undecided"
        items.append({"value": "–", "label": t("number.measured"), "note": t(key)})
    else:
        exposed = audit["exposed"]
        items.append(
            {
                "value": t(
                    "number.measured.value", count=t.integer(exposed["count"]), patients=t.integer(audit["patients"])
                ),
                "label": t("number.measured"),
                "note": t(
                    "number.measured.note",
                    share=t.percent(exposed["share"]),
                    interval=t.interval(exposed["low"], exposed["high"], percent=True, digits=1) or t("unknown"),
                ),
            }
        )
    if spent["epsilon"] is None:
        key = "number.spent.none" if facts["cohort"]["public"] else "number.spent.unknown"
        items.append({"value": "–", "label": t("number.spent"), "note": t(key)})
    else:
        items.append(
            {
                "value": t.percent(spent["share_used"], 0),
                "label": t("number.spent"),
                "note": t(
                    "number.spent.note.locked" if spent["locked"] else "number.spent.note",
                    after=t.epsilon(spent["after"]),
                    total=t.number(spent["epsilon"], 2),
                    remaining=t.remaining(spent["remaining"]),
                ),
            }
        )
    return items


def _benefit(facts: Facts, t: Language) -> str:
    utility = facts["utility"]
    if utility is None or utility["main"] is None or utility["main"] not in utility["overall"]:
        return t("decision.benefit.none" if facts["edition"] == Edition.CONTROLLER else "decision.benefit.unreleased")
    cell = utility["overall"][utility["main"]]
    return t(
        "decision.benefit.value",
        metric=t.known("metric", utility["main"]),
        value=_estimate(cell, t),
        patients=t.integer(utility["patients"]),
        split=t.known("split", utility["split"]),
    )


def _estimate(cell: Facts, t: Language) -> str:
    """0.982 (0.974 to 0.989)."""
    value = t.number(cell["value"], METRIC_DIGITS)
    interval = t.interval(cell["low"], cell["high"], digits=METRIC_DIGITS)
    return f"{value} ({interval})" if interval else value


def _warning(name: str, facts: Facts, t: Language) -> str:
    canary = (facts["audit"] or {}).get("canary") or {}
    bad = [t.known("file", key) for key, row in facts["integrity"].items() if row["match"] is False]
    failed = [
        t.known("check", row["id"]) for row in facts["checks"] if row["status"] == "failed" and row["by"] == "program"
    ]
    return t(
        f"warning.{name}.text",
        bound=t.number(canary.get("epsilon_lower"), 2),
        epsilon=t.epsilon(facts["privacy"]["epsilon"], facts["privacy"]["infinite"]),
        status=t.known("status", facts["run"]["status"]),
        files=t.listing(bad),
        checks=" · ".join(failed),
        withheld=t.integer(len((facts["audit"] or {}).get("withheld", [])) - len(extrapolated(facts["audit"]))),
    )


def _risk(name: str, facts: Facts, t: Language) -> str:
    audit, run, utility = facts["audit"] or {}, facts["run"], facts["utility"] or {}
    gap = next((gap for gap in utility.get("gaps", []) if gap["intervals_overlap"] is False), None) or {}
    return t(
        f"risk.{name}",
        exposed=t.integer((audit.get("exposed") or {}).get("count")),
        right=t.integer(facts["odds"]["right_of_100"]),
        cautions=" · ".join(t.quote(text) for text in facts["cohort"]["cautions"]),
        units=t.integer(facts["cohort"]["units_per_person"]),
        column=t.known("column", gap.get("column")),
        worst=gap.get("worst", ""),
        best=gap.get("best", ""),
        difference=t.number(gap.get("difference"), METRIC_DIGITS),
        metric=t.known("metric", gap.get("metric")),
        runs=t.integer(len(facts["privacy"]["inherited"])),
        crashes=t.integer(run["resume"]["crashes"]),
        lost=t.integer(run["resume"]["steps_lost"]),
        trials=t.integer((run["sweep"] or {}).get("trials")),
        total=t.epsilon((run["sweep"] or {}).get("epsilon_total")),
        boxes=t.integer(facts["open_checks"]),
    )


def _missing(row: dict[str, str], t: Language) -> str:
    return t(f"missing.{row['why']}", piece=t.known("file", row["piece"]), detail=row["detail"])


def promise(facts: Facts, t: Language) -> Section:
    """What the guarantee means: odds first, then the curve, then (ε, δ)."""
    privacy, odds, audit = facts["privacy"], facts["odds"], facts["audit"]
    units = facts["cohort"]["units_per_person"] or 1
    if privacy["infinite"]:
        blocks = [p(t("promise.infinite"))]
        if audit is not None and audit["roc"] is not None:
            blocks.append(_tradeoff(facts, "open", t))
        return section("promise", t, blocks)
    if privacy["epsilon"] is None:
        return section("promise", t, [p(t("promise.unknown"))])
    pair = odds["pairs"][1]
    blocks = [p(t("promise.setting"))]
    if pair["with_at_most"] is not None:
        values = {"without": t.integer(pair["without"]), "with_": t.integer(pair["with_at_most"])}
        blocks += [p(t("promise.pair", **values)), figure("odds", t, **values)]
    if odds["right_of_100"] is not None:
        blocks.append(
            p(t("promise.guess", right=t.integer(odds["right_of_100"]), chance=t.integer(odds["chance_of_100"])))
        )
    measured = any(row["measured_mean"] is not None for row in odds["pairs"])
    head = [t("promise.table.without"), t("promise.table.ceiling")]
    if measured:
        head += [t("promise.table.mean"), t("promise.table.max")]
    body = []
    for row in odds["pairs"]:
        if row["ceiling"] is None:
            continue
        line = [t.integer(row["without"]), t.number(100 * row["ceiling"], 1)]
        if measured:
            star = " *" if row["extrapolated"] else ""
            line += [_times_100(row["measured_mean"], t) + star, _times_100(row["measured_max"], t) + star]
        body.append(line)
    if body:
        some = any(row["extrapolated"] for row in odds["pairs"])
        note = t("promise.table.note")
        if some and measured:
            need = max((row["need"] or 0 for row in extrapolated(audit)), default=None)
            note = t("promise.table.note.extrapolated", need=t.integer(need))
        blocks.append(table(t("promise.table"), head, body, note))
    if privacy["tradeoff"] is not None:
        ending = "measured" if audit is not None and audit["roc"] is not None else "alone"
        blocks.append(_tradeoff(facts, ending, t, epsilon=t.epsilon(privacy["epsilon"])))
    blocks += [
        heading(t("promise.formal")),
        p(
            t(
                "promise.statement",
                epsilon=t.epsilon(privacy["epsilon"]),
                delta=t.power(privacy["delta"]),
                unit=unit_word(facts, t),
                adjacency=t.known("adjacency", privacy["adjacency"]),
                accountant=privacy["accountant"] or t("unknown"),
            )
        ),
        rows(
            [
                (t("promise.mu"), t.number(privacy["mu"], 2) if privacy["mu"] is not None else ""),
                (t("promise.auc"), t.number(privacy["auc_ceiling"], 3) if privacy["auc_ceiling"] is not None else ""),
                (
                    t("promise.advantage"),
                    t.number(privacy["advantage"], 3) if privacy["advantage"] is not None else "",
                ),
                (
                    t("promise.n_delta"),
                    t("promise.n_delta.value", value=t.shortest(privacy["n_delta"]))
                    if privacy["n_delta"] is not None
                    else "",
                ),
                *(
                    (
                        t("promise.group.units" if units > 1 else "promise.group", k=k),
                        t("promise.group.value", epsilon=t.epsilon(value)),
                    )
                    for k, value in privacy["group_epsilon"].items()
                ),
                *(
                    (
                        t("promise.reconstruction", prior=_percent_key(kappa, t)),
                        t("promise.reconstruction.value", posterior=t.percent(value, 1)),
                    )
                    for kappa, value in privacy["reconstruction"].items()
                ),
            ]
        ),
    ]
    if len(privacy["epsilon_over_steps"]) > 1:
        blocks.append(figure("epsilon_over_steps", t, epsilon=t.epsilon(privacy["epsilon_over_steps"][-1][1])))
    blocks += [heading(t("promise.not")), bullets([t(f"promise.not.{n}") for n in (1, 2, 3)])]
    return section("promise", t, blocks)


def _tradeoff(facts: Facts, ending: str, t: Language, **values: object) -> Block:
    """The trade-off figure; its words name the curve of the planted patients where that is drawn."""
    block = figure(f"tradeoff_{ending}", t, **values)
    bound = figures.canary_bound(facts)
    if bound is not None:
        for part in ("caption", "alt"):
            block[part] += " " + t(f"figure.tradeoff_canary.{part}", bound=t.number(bound, 2))
    return block


def _times_100(value: float | None, t: Language) -> str:
    return "–" if value is None else t.number(100 * value, 1)


def _percent_key(kappa: str, t: Language) -> str:
    """A share that is the key of a table, as per cent with the decimals it needs."""
    share = float(kappa) if kappa.replace(".", "", 1).replace("e-", "", 1).isdigit() else None
    return kappa if share is None else t.percent(share, 0 if share >= 0.01 else 1)


def budget(facts: Facts, t: Language) -> Section:
    """What the cohort's budget was, is and has left."""
    spent, cohort = facts["budget"], facts["cohort"]
    blocks: list[Block] = []
    if cohort["public"]:
        blocks.append(p(t("budget.public")))
    elif spent["epsilon"] is None:
        blocks.append(p(t("budget.unknown")))
    else:
        values = {
            "total": t.number(spent["epsilon"], 2),
            "before": t.epsilon(spent["before"]),
            "this": t.epsilon(spent["this"]),
            "after": t.epsilon(spent["after"]),
            "remaining": t.remaining(spent["remaining"]),
        }
        blocks += [
            p(t("budget.sentence", cohort=cohort["name"] or t("unknown"), **values)),
            figure("budget", t, **values),
        ]
        if spent["locked"]:
            blocks.append(p(t("budget.locked", minimum=t.shortest(spent["minimum_charge"], 3))))
    blocks.append(
        rows(
            [
                (t("budget.kind"), t.known("kind", spent["kind"]) if spent["kind"] else ""),
                (t("budget.delta"), t.power(spent["delta"]) if spent["delta"] else ""),
                (t("budget.order"), t.shortest(spent["order"]) if spent["order"] else ""),
                (t("budget.minimum"), t.shortest(spent["minimum_charge"], 3) if spent["minimum_charge"] else ""),
                (t("budget.owner"), cohort["owner"] or ""),
            ]
        )
    )
    if not cohort["public"] and spent["epsilon"] is not None:
        blocks.append(p(t("budget.two", gate=t.epsilon(spent["this"]), pld=guarantee(facts, t))))
    if spent["history"]:
        blocks.append(history_table(spent["history"], t))
    return section("budget", t, [block for block in blocks if block.get("rows", True)])


def history_table(history: list[Facts], t: Language) -> Block:
    """Every charge of a cohort, one a line."""
    head = [t("budget.history.run"), t("budget.history.date"), t("budget.history.steps"), t("budget.history.pld")]
    head.append(t("budget.history.after"))
    body = [
        [
            row["run"] + (t("budget.history.this") if row["this"] else ""),
            t.date(row["date"][:10]),
            t.integer(row["steps"]),
            "–" if row["private"] and row["epsilon"] is None else t.epsilon(row["epsilon"], not row["private"]),
            "–" if row["gate_after"] is None else t.epsilon(row["gate_after"]),
        ]
        for row in history
    ]
    return table(t("budget.history"), head, body, t("budget.history.note"))


def risk(facts: Facts, t: Language) -> Section:
    """Measured risk: by count and group, never by name."""
    audit = facts["audit"]
    if audit is None:
        key = "risk.none" if facts["edition"] == Edition.CONTROLLER else "risk.unreleased"
        return section("risk", t, [p(t(key))])
    exposed, verdicts = audit["exposed"], audit["verdicts"]
    blocks = [
        p(
            t(
                "risk.sentence",
                references=t.integer(audit["references"]),
                patients=t.integer(audit["patients"]),
                game=t.known("game", audit["game"]),
            )
        ),
        p(t("risk.exposed.none"))
        if exposed["count"] is None
        else p(
            t(
                "risk.exposed.sentence",
                count=t.integer(exposed["count"]),
                patients=t.integer(audit["patients"]),
                share=t.percent(exposed["share"]),
                interval=t.interval(exposed["low"], exposed["high"], percent=True, digits=1) or t("unknown"),
            )
        ),
    ]
    if None not in verdicts.values():
        blocks.append(
            table(
                t("risk.verdicts"),
                [t("risk.verdict"), t("risk.patients")],
                [[t(f"audit_verdict.{name}"), t.integer(count)] for name, count in verdicts.items()],
                t("risk.verdicts.note"),
            )
        )
    if audit["confirmed"]:
        blocks.append(
            p(
                t(
                    "risk.confirmed",
                    tested=t.integer(audit["confirmed"]["tested"]),
                    confirmed=t.integer(audit["confirmed"]["confirmed"]),
                )
            )
        )
    if audit["survival"]:
        blocks.append(figure("survival", t, mean=t.number(audit["auc"]["mean"], 3)))
    auc = audit["auc"]
    blocks.append(
        rows(
            [
                (t("risk.game"), t.known("game", audit["game"])),
                (t("risk.attack"), t.known("attack", audit["attack"])),
                (t("risk.auc"), t.number(auc["mean"], 3) if auc["mean"] is not None else ""),
                (t("risk.auc.max"), _largest_auc(auc, t)),
                (t("risk.baseline"), _baseline(facts, t)),
                (
                    t("risk.new_scan"),
                    t(
                        "risk.new_scan.value",
                        auc=t.number(audit["new_scan"]["auc"], 3),
                        interval=t.interval(audit["new_scan"]["low"], audit["new_scan"]["high"]) or t("unknown"),
                    )
                    if audit["new_scan"]
                    else "",
                ),
            ]
        )
    )
    for column, cells in audit["groups"].items():
        caption = t("risk.group", column=t.known("column", column))
        blocks.append(
            {
                "kind": "figure",
                "name": f"risk_group:{column}",
                "caption": caption,
                "alt": t("figure.groups.alt", column=t.known("column", column), list="; ".join(_shares(cells, t))),
            }
        )
    blocks += _withheld_groups(audit["suppressed"], t)
    if audit["canary"]:
        canary = audit["canary"]
        blocks += [
            heading(t("risk.canary")),
            p(
                t(
                    "risk.canary.broken" if canary["broken"] else "risk.canary.text",
                    count=t.integer(canary["count"]),
                    trainings=t.integer(canary["trainings"]),
                    bound=t.number(canary["epsilon_lower"], 2),
                    confidence=t.percent(canary["confidence"], 0),
                    epsilon=t.epsilon(facts["privacy"]["epsilon"], facts["privacy"]["infinite"]),
                )
            ),
        ]
    marked = extrapolated(audit)
    withheld = [row for row in audit["withheld"] if row not in marked]
    for key, found in (("risk.withheld", withheld), ("risk.extrapolated", marked)):
        if found:
            blocks += [
                heading(t(key)),
                bullets(
                    [
                        t(
                            f"{key}.item",
                            what=t.known("withheld", row["what"]),
                            have=t.integer(row["have"]),
                            need=t.integer(row["need"]),
                        )
                        for row in found
                    ]
                ),
            ]
    blocks += [heading(t("risk.limits")), p(t("risk.limits.text"))]
    return section("risk", t, blocks, marked=True)


def _largest_auc(auc: Facts, t: Language) -> str:
    """The largest AUC of all patients, never without the remark that chance alone makes it large."""
    if auc["max"] is None:
        return ""
    if auc["max_by_chance"] is None:
        return t("risk.auc.max.plain", auc=t.number(auc["max"], 3))
    return t("risk.auc.max.value", auc=t.number(auc["max"], 3), chance=t.number(auc["max_by_chance"], 3))


def _baseline(facts: Facts, t: Language) -> str:
    """The best-record baseline; the controller's edition alone shows it, by its name and not as a risk."""
    baseline = facts["audit"]["baseline_max"]
    if facts["edition"] != Edition.CONTROLLER or baseline["mean"] is None:
        return ""
    return t("risk.baseline.value", mean=t.number(baseline["mean"], 3), most=t.number(baseline["max"], 3))


def _shares(cells: dict[str, Facts], t: Language) -> list[str]:
    return [
        t(
            "risk.group.item",
            value=value,
            share=t.percent(cell["share"]),
            interval=t.interval(cell["low"], cell["high"], percent=True, digits=1) or t("unknown"),
            patients=t.integer(cell["patients"]),
        )
        for value, cell in cells.items()
    ]


def _withheld_groups(suppressed: list[Facts], t: Language) -> list[Block]:
    if not suppressed:
        return []
    names = [f"{t.known('column', row['group'])}: {row['value']}" for row in suppressed]
    return [p(t("group.suppressed", names="; ".join(names)))]


def utility(facts: Facts, t: Language) -> Section:
    """What the model is good for, and for whom."""
    found = facts["utility"]
    if found is None:
        key = "utility.none" if facts["edition"] == Edition.CONTROLLER else "utility.unreleased"
        return section("utility", t, [p(t(key))])
    blocks: list[Block] = []
    level = t("level", value=t.integer(100 * (found["bootstrap"]["level"] or 0.95)))
    if found["overall"]:
        blocks += [
            p(
                t(
                    "utility.sentence",
                    split=t.known("split", found["split"]),
                    patients=t.integer(found["patients"]),
                    records=t.integer(found["records"]),
                    replicates=t.integer(found["bootstrap"]["replicates"]),
                    level=level,
                )
            ),
            _metric_table(t("utility.overall"), found["overall"], t, level),
        ]
    for name, metrics in found["by_class"].items():
        blocks.append(_metric_table(t("utility.class", name=name), metrics, t, level))
    for column, cells in found["groups"].items():
        main = found["main"]
        shown = {value: cell for value, cell in cells.items() if main in cell["metrics"]}
        if shown:
            described = [
                t(
                    "utility.group.item",
                    value=value,
                    estimate=_estimate(cell["metrics"][main], t),
                    patients=t.integer(cell["patients"]),
                )
                for value, cell in shown.items()
            ]
            blocks.append(
                {
                    "kind": "figure",
                    "name": f"utility_group:{column}",
                    "caption": t("utility.group", column=t.known("column", column), metric=t.known("metric", main)),
                    "alt": t("figure.groups.alt", column=t.known("column", column), list="; ".join(described)),
                }
            )
    for gap in found["gaps"]:
        blocks.append(
            p(
                t(
                    "utility.gap.apart" if gap["intervals_overlap"] is False else "utility.gap",
                    column=t.known("column", gap["column"]),
                    worst=gap["worst"],
                    best=gap["best"],
                    difference=t.number(gap["difference"], METRIC_DIGITS),
                )
            )
        )
    blocks += _withheld_groups(found["suppressed"], t)
    if found["reliability"]:
        error = found["overall"].get("calibration_error")
        blocks += [
            heading(t("utility.calibration")),
            figure("reliability", t, error=t.number(error["value"], METRIC_DIGITS) if error else t("unknown")),
        ]
    if found["temperature"] is not None:
        blocks.append(p(t("utility.temperature", value=t.number(found["temperature"], 2))))
    if found["conformal"]:
        conformal = found["conformal"]
        alpha = conformal["alpha"]
        blocks.append(
            p(
                t(
                    "utility.conformal",
                    goal=t.percent(None if alpha is None else 1 - alpha, 0),
                    coverage=t.percent(conformal["coverage"]),
                    size=t.number(conformal["set_size"], 2),
                )
            )
        )
    return section("utility", t, blocks, marked=True)


def _metric_table(caption: str, metrics: dict[str, Facts], t: Language, level: str) -> Block:
    return table(
        caption,
        [t("utility.metric"), t("utility.value"), t("utility.interval", level=level)],
        [
            [
                t.known("metric", name),
                t.number(cell["value"], METRIC_DIGITS),
                t.interval(cell["low"], cell["high"], digits=METRIC_DIGITS) or "–",
            ]
            for name, cell in metrics.items()
        ],
    )


def not_covered(facts: Facts, t: Language) -> Section:
    """Everything that touched patients beside the training steps, and what became of it."""
    body = []
    for row in facts["not_covered"]:
        note = t.known("covered.note", row["what"]) if t.has(f"covered.note.{row['what']}") else row["note"]
        if row["what"] == "starting weights":
            note = t.quote(row["note"]) if row["note"] else ""
        body.append([t.known("covered", row["what"]), t.known("covered.status", row["status"]), note])
    blocks = [p(t("not_covered.sentence"))]
    if body:
        head = [t("not_covered.what"), t("not_covered.status"), t("not_covered.why")]
        blocks.append({**table(t("not_covered.table"), head, body), "text_columns": True})
    blocks.append(bullets([t(f"not_covered.always.{n}") for n in (1, 2, 3)]))
    return section("not_covered", t, blocks)


def mechanism(facts: Facts, t: Language) -> Section:
    """How the protection works, and on what it rests."""
    privacy, model, run = facts["privacy"], facts["model"], facts["run"]
    calibration = [m for m in privacy["mechanisms"] if m["what"] != "training"]
    blocks = [
        p(t("mechanism.sentence", unit=unit_word(facts, t))),
        rows(
            [
                (t("mechanism.batch"), t.integer(privacy["expected_batch_size"])),
                (t("mechanism.rate"), t.shortest(privacy["sample_rate"])),
                (t("mechanism.noise"), t.number(privacy["noise_multiplier"], 3)),
                (t("mechanism.clip"), t.shortest(privacy["max_grad_norm"], 3)),
                (
                    t("mechanism.steps"),
                    t(
                        "mechanism.steps.value",
                        planned=t.integer(privacy["steps_planned"]),
                        run=t.integer(privacy["steps_run"]),
                        charged=t.integer(privacy["steps_charged"]),
                    )
                    if privacy["steps_planned"] is not None
                    else t("unknown"),
                ),
                (t("mechanism.records"), t.integer(privacy["max_records_per_patient"])),
                (t("mechanism.views"), t.integer(privacy["views"])),
                (t("mechanism.generator"), t.known("generator", privacy["generator"])),
                *(
                    (
                        t("mechanism.also"),
                        t(
                            "mechanism.also.value",
                            what=t.known("mechanism_name", m["what"]),
                            noise=t.number(m["noise_multiplier"], 3),
                            steps=t.integer(m["steps"]),
                        ),
                    )
                    for m in calibration
                ),
                *(
                    (
                        t("mechanism.inherited"),
                        t(
                            "mechanism.inherited.value",
                            run=row["run"],
                            epsilon=t.epsilon(row["epsilon"], row["epsilon"] is None),
                        ),
                    )
                    for row in privacy["inherited"]
                ),
                (t("mechanism.network"), model["network"] or ""),
                (
                    t("mechanism.parameters"),
                    t(
                        "mechanism.parameters.value",
                        trainable=t.integer(model["trainable_parameters"]),
                        all=t.integer(model["parameters"]),
                    )
                    if model["parameters"] is not None
                    else "",
                ),
                (
                    t("mechanism.weights"),
                    t.known("weights_source", model["weights_source"])
                    + (f": {t.quote(model['weights_note'])}" if model["weights_note"] else "")
                    if model["weights_source"]
                    else "",
                ),
                (t("mechanism.classes"), ", ".join(run["classes"])),
            ]
        ),
        heading(t("mechanism.checked")),
    ]
    program = [row for row in facts["checks"] if row["by"] == "program"]
    if program:
        blocks.append({"kind": "ticks", "items": [_tick(row, t) for row in program]})
    else:
        blocks.append(p(t("mechanism.checked.none")))
    blocks += [
        heading(t("mechanism.person")),
        p(t("mechanism.person.text")),
        {
            "kind": "ticks",
            "items": [
                {"state": "open", "text": t.known("check", row["id"]), "note": row["note"]}
                for row in person_checks(facts)
            ],
        },
    ]
    return section("mechanism", t, blocks)


def _tick(row: dict[str, str], t: Language) -> Block:
    text = t(f"check.{row['id']}") if t.has(f"check.{row['id']}") else t.quote(row["name"] or row["id"])
    state = row["status"] if row["status"] in ("passed", "failed", "not_checked") else "not_checked"
    return {"state": state, "text": text, "note": row["note"]}


def integrity(facts: Facts, t: Language) -> Section:
    """How to see that nothing was changed since."""
    ledger, run = facts["ledger"], facts["run"]
    head = ledger["head"]
    hashes = []
    for name, row in facts["integrity"].items():
        state = (
            "integrity.unknown"
            if row["match"] is None
            else "integrity.match"
            if row["match"]
            else "integrity.differs"
        )
        hashes.append((t("integrity.hash", file=t.known("file", name)), f"{row['stated'] or '–'} ({t(state)})"))
    blocks = [
        p(t("integrity.sentence")),
        rows(
            [
                *hashes,
                (t("integrity.head"), head["hash"] or t("unknown")),
                (t("integrity.entries"), t.integer(head["entries"])),
                (t("integrity.time"), t.date(head["time"])),
                (t("integrity.signature"), head["signature"] or t("unknown")),
                (t("integrity.key"), head["public_key"] or ""),
                (t("integrity.site"), ledger["site"] or ""),
                (t("integrity.grant"), ledger["grant"] or ""),
            ]
        ),
        p(t("integrity.witness.yes" if ledger["rollback_detectable"] else "integrity.witness.no")),
        heading(t("integrity.program")),
        rows(
            [
                (
                    t("integrity.versions"),
                    " · ".join(f"{name} {version}" for name, version in run["program"].items()),
                ),
                (t("integrity.command"), run["command"] or ""),
            ]
        ),
    ]
    return section("integrity", t, blocks)


def signature(facts: Facts, t: Language) -> Section:
    """Advice, decision, names: filled in by people; the recorded decision where there is one."""
    released = facts["released"]
    blocks: list[Block] = []
    if released:
        blocks += [
            p(t("signature.recorded")),
            rows(
                [
                    (t("signature.items"), t.listing([t(f"item.{item}") for item in released["items"]])),
                    (t("decision.recipient"), released["recipient"] or ""),
                    (t("decision.purpose"), released["purpose"] or ""),
                    (t("signature.advice"), released["advice"] or ""),
                    (t("signature.controller"), released["controller"] or ""),
                    (t("signature.date"), t.date(released["date"])),
                    (t("signature.entry"), released["entry"] or ""),
                ]
            ),
        ]
    if facts["edition"] == Edition.PUBLIC:
        if not released:
            blocks.append(p(t("signature.unrecorded")))
        return section("signature", t, blocks)
    blocks += [
        blank(t("signature.advice.blank"), 4),
        {
            "kind": "ticks",
            "items": [{"state": "open", "text": t(f"signature.choice.{n}"), "note": ""} for n in (1, 2, 3)],
        },
        blank(t("signature.decision.blank"), 4),
        {
            "kind": "signatures",
            "people": [t("signature.dpo"), t("signature.controller")],
            "fields": [t("signature.name"), t("signature.place"), t("signature.sign")],
        },
    ]
    return section("signature", t, blocks)


TERMS = (
    "patient",
    "guarantee",
    "epsilon",
    "delta",
    "attacker",
    "exposed",
    "auroc",
    "interval",
    "ledger",
    "gate",
    "noise",
    "mu",
    "reference",
)


def glossary(t: Language) -> Section:
    """Words of the report, for readers who are not from the field."""
    return section("glossary", t, [rows([(t(f"term.{term}"), t(f"term.{term}.text")) for term in TERMS])])

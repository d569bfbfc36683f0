"""One set of facts: whole, partial and hostile runs; what the public edition holds back."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from dptrain.errors import ConfigError
from dptrain.records import Fault
from dptrain.records.shape import LONGEST_TEXT, clean
from dptrain.report import facts as facts_module
from dptrain.report.judgement import of_100
from dptrain.report.language import Language
from dptrain.report.sections.decision import decision
from dptrain.report.sections.frameworks import frameworks
from dptrain.report.sections.promise import promise
from tests.report.made import PLANTED, PLANTED_EXPOSED, audit, metrics, run_facts

jsonschema = pytest.importorskip("jsonschema")
SCHEMA = json.loads(files("dptrain.report").joinpath("schema", "facts-1.json").read_text(encoding="utf-8"))


def valid(facts):
    jsonschema.validate(json.loads(json.dumps(facts.to_json(), allow_nan=False)), SCHEMA)
    return facts


def test_both_editions_follow_the_schema(run):
    facts = valid(facts_module.read(run))
    valid(facts_module.public(facts))
    assert facts.complete
    assert facts.verdict == "exposed"
    assert facts.warnings == ("unreached", "rollback")  # an extrapolated rate is marked where it stands
    assert facts.odds.right_of_100 == 77


def test_unreleased_results_stay_out_of_the_public_edition(edited):
    facts = valid(facts_module.public(facts_module.read(edited())))
    text = json.dumps(facts.to_json())
    assert facts.utility is None
    assert facts.audit is None
    assert facts.verdict == "promised"
    for planted in (PLANTED, PLANTED_EXPOSED / 2180, 0.9512, 0.7783, 1.317):
        assert f"{planted}" not in text


@pytest.mark.parametrize(
    ("items", "shown", "hidden"),
    [
        (["model"], (), (PLANTED, 0.9512, 0.7783, 0.0464)),
        (["metrics"], (PLANTED,), (0.9512, 0.7783, 0.0464)),
        (["groups"], (0.9512,), (0.99317, 0.7783, 0.0464)),
        (["audit"], (0.7783,), (PLANTED, 0.9512, 0.0464)),
        (["audit", "groups"], (0.7783, 0.9512, 0.0464), (0.99317,)),
    ],
)
def test_each_item_opens_its_own_part(edited, items, shown, hidden):
    folder = edited(lambda v: v.update(released={"items": items, "recipient": "x"}))
    facts = valid(facts_module.public(facts_module.read(folder)))
    text = json.dumps(facts.to_json())
    assert all(str(value) in text for value in shown)
    assert not any(str(value) in text for value in hidden)


@pytest.mark.parametrize(
    ("change", "warning", "verdict"),
    [
        (lambda v: v.update(status="running"), "incomplete", "incomplete"),
        (lambda v: v["privacy"].update(epsilon=None, infinite=True), "infinite", "none"),
        (lambda v: v["privacy"].update(epsilon=None), "incomplete", "incomplete"),
        (lambda v: v["privacy"].update(generator="fast"), "fast_generator", "exposed"),
        (lambda v: v["model"].update(sha256="00"), "hash_mismatch", "mismatch"),
        (lambda v: v["checks"][2].update(status="failed"), "check_failed", "exposed"),
        (lambda v: v["ledger"].update(rollback_detectable=None), "rollback", "exposed"),
    ],
)
def test_page_one_warns(edited, change, warning, verdict):
    facts = valid(facts_module.read(edited(change)))
    assert warning in facts.warnings
    assert facts.verdict == verdict


def test_a_witness_ends_the_warning_of_rollback(edited):
    folder = edited(lambda v: v["ledger"].update(witness=True, rollback_detectable=True))
    assert "rollback" not in facts_module.read(folder).warnings


def test_missing_audit_and_broken_guarantee(edited):
    facts = valid(facts_module.read(edited(with_audit=False)))
    assert facts.warnings[0] == "audit_missing"
    assert facts.verdict == "unmeasured"
    broken = audit()
    broken["canary"].update(epsilon_lower=9.5, broken=True)
    facts = valid(facts_module.read(edited(with_audit=broken)))
    assert facts.warnings[0] == "guarantee_broken"
    assert facts.verdict == "broken"


def test_an_audit_without_verdicts_is_not_called_safe(edited):
    few = audit()
    few.update(exposed=None, verdicts=None, groups={}, withheld=[{"what": "verdicts", "have": 8, "need": 200}])
    facts = valid(facts_module.read(edited(with_audit=few)))
    assert facts.verdict == "undecided"
    assert "audit_thin" in facts.warnings


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": "dptrain.run/99"}', "\ud800", "[" * 100_000])
def test_torn_run_is_listed_and_the_rest_is_given(edited, content):
    folder = edited()
    (folder / "run.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    facts = valid(facts_module.read(folder))
    assert facts.missing[0].piece == "run"
    assert not facts.complete
    assert facts.audit.exposed.count == PLANTED_EXPOSED


def test_every_field_of_the_wrong_type_is_survived(edited):
    """Each leaf and branch of run.json replaced, one after another, by values that do not belong there."""

    def paths(value, path=()):
        yield path
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from paths(inner, (*path, key))

    folder = edited()
    (folder / "model" / "model.safetensors").unlink()
    for path in paths(run_facts()):
        if not path or path == ("schema",):
            continue
        wrong: object
        for wrong in ([], {}, "x\x00", -1e308, True, [{"run": {}}, [1]]):
            values = run_facts()
            place = values
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = wrong
            (folder / "run.json").write_text(json.dumps(values))
            facts_module.public(facts_module.read(folder))


def test_infinite_and_not_a_number_in_json_are_unknown(edited):
    folder = edited()
    text = (folder / "run.json").read_text().replace('"epsilon": 6.542258379108255', '"epsilon": NaN')
    (folder / "run.json").write_text(text)
    facts = valid(facts_module.read(folder))
    assert Fault(piece="run", why="field", detail="privacy.epsilon") in facts.missing
    assert facts.verdict == "incomplete"


def test_a_bin_of_a_few_records_is_nobodys_business(edited):
    """Released calibration must not show probability and label of one test patient's image."""
    found = metrics()
    found["reliability"][0].update(count=1, confidence=0.04321, observed=1.0)
    folder = edited(lambda v: v.update(released={"items": ["metrics"], "recipient": "x"}), with_metrics=found)
    facts = valid(facts_module.public(facts_module.read(folder)))
    assert "0.04321" not in json.dumps(facts.to_json())
    assert len(facts.utility.reliability) == len(found["reliability"]) - 1


def test_groups_stand_as_people_count_them(edited):
    found = metrics()
    cell = found["groups"]["sex"]["F"]
    names = ["18 to 39", "65 and above", "below 18", "40 to 64"]
    found["groups"] = {"age": dict.fromkeys(names, cell), "records": dict.fromkeys(["10", "2", "unknown"], cell)}
    groups = facts_module.read(edited(with_metrics=found)).utility.groups
    assert list(groups["age"]) == ["below 18", "18 to 39", "40 to 64", "65 and above"]
    assert list(groups["records"]) == ["2", "10", "unknown"]


def test_an_empty_folder_is_no_run(tmp_path):
    with pytest.raises(ConfigError):
        facts_module.read(tmp_path)
    with pytest.raises(ConfigError):
        facts_module.read(tmp_path / "nowhere")


def test_text_is_cleaned():
    assert clean("a\x1b[31mb\u202ec\n") == "a⟨U+001B⟩[31mb⟨U+202E⟩c "
    assert len(clean("x" * 10_000)) == LONGEST_TEXT + 1


def test_counts_of_100_are_rounded_up():
    assert of_100(0.4211) == 43
    assert of_100(0.42) == 42
    assert of_100(1.0) == 100


def test_a_trial_is_called_one_of_several_even_where_the_sum_is_not_there(edited):
    said = {"id": "0123456789abcdef", "trials": None, "epsilon_total": None}
    facts = valid(facts_module.read(edited(lambda v: v.update(sweep=said))))
    assert "sweep_open" in facts.risks
    assert "sweep" not in facts.risks
    for lang, words in {"en": "one of several trials", "de": "einer von mehreren Versuchen"}.items():
        t = Language(lang)
        assert words in json.dumps(decision(facts, t), ensure_ascii=False)
        assert words in json.dumps(frameworks(facts, t)["blocks"], ensure_ascii=False)
    facts = facts_module.read(edited(lambda v: v.update(sweep={**said, "trials": 3, "epsilon_total": 2.5})))
    assert "sweep" in facts.risks
    assert "sweep_open" not in facts.risks


def test_groups_are_of_units_where_a_person_may_have_several(edited):
    def several(values):
        values["cohort"].update(unit="volume", units_per_person=3)
        values["privacy"].update(group_epsilon={"2": 15.4, "3": 25.0})

    facts = valid(facts_module.read(edited(several)))
    text = json.dumps(promise(facts, Language("en")))
    assert "For 3 units of protection together" in text
    assert "persons together" not in text

"""German and English: the same keys and values, no sentence left behind, numbers as their readers write them."""

from __future__ import annotations

import itertools
import re
import string
from dataclasses import replace

import pytest

from dptrain.errors import ConfigError
from dptrain.report import facts as facts_module
from dptrain.report import figures
from dptrain.report.document import document
from dptrain.report.language import Language, table
from dptrain.vocabulary import LANGUAGES
from tests.report.text import html_text

ENGLISH = set("the of and with without which from patients not are by is this that they have were whether".split())  # noqa: SIM905
SAME = re.compile(r"^[\W\d]*$")


def test_every_key_has_both_languages_and_the_same_values():
    formatter = string.Formatter()
    for key, sentences in table().items():
        assert set(sentences) == set(LANGUAGES), key
        fields = [{part[1] for part in formatter.parse(text) if part[1]} for text in sentences.values()]
        assert fields[0] == fields[1], key
        assert all(text.strip() for text in sentences.values()), key


def test_german_is_german():
    english = re.compile(r"\b(?:" + "|".join(ENGLISH - {"is", "by"}) + r")\b", re.IGNORECASE)
    for key, sentences in table().items():
        said = re.sub(r"\{\w+\}|`[^`]*`", "", sentences["de"])
        assert not english.search(said), (key, said)


@pytest.mark.parametrize("edition", ["controller", "public"])
def test_no_english_sentence_in_a_german_report(faces, edition):
    _, made = faces(edition, "de")
    text = " ".join(html_text(made["report.html"].decode()).split())
    for key, sentences in table().items():
        english = sentences["en"]
        if "{" in english or len(english.split()) < 3 or english == sentences["de"]:
            continue
        assert english not in text, key
    for word in ENGLISH:
        found = re.search(rf".{{0,30}}\b{word}\b.{{0,30}}", text)
        assert not found, found


def test_terms_of_the_authorities(faces):
    text = html_text(faces("controller", "de")[1]["report.html"].decode())
    terms = ("Datenschutz-Folgenabschätzung", "Re-Identifizierung", "Verantwortlicher", "Datenschutzbeauftragte")
    more = ("personenbezogene", "Einwilligung", "betroffenen Personen", "Rechtsgrundlage", "Abhilfemaßnahmen")
    for term in (*terms, *more):
        assert term in text, term


def test_every_sentence_is_used_somewhere():
    """Keys that no code names, and that no family of keys covers, are dead."""
    from importlib.resources import files

    report = files("dptrain.report")
    modules = [path for folder in (report, report / "sections") for path in folder.iterdir()]
    code = "".join(path.read_text(encoding="utf-8") for path in modules if path.name.endswith(".py"))
    families = (
        *("warning", "verdict", "risk", "missing", "file", "figure", "kind", "metric", "split", "column", "withheld"),
        *("covered", "unit", "adjacency", "generator", "mechanism_name", "weights_source", "check", "gdpr", "edpb"),
        *(
            "nist",
            "ai_act",
            "ponomareva",
            "blank",
            "item",
            "term",
            "task",
            "status",
            "game",
            "attack",
            "edition",
            "claim",
        ),
        *("audit_verdict", "tick", "strength", "promise.not", "detector", "signature.choice", "not_covered.always"),
        *("reconstruction.arm", "reconstruction.coordinator", "reconstruction.returns"),
    )
    dead = [
        key
        for key in table()
        if not any(f"{edge}{key}{end}" in code for edge in '"|' for end in '"|?')
        and not key.startswith(tuple(f"{family}." for family in families))
        and not (key.endswith(".title") and f'"{key.removesuffix(".title")}"' in code)
    ]
    assert not dead


def test_numbers():
    en, de = Language("en"), Language("de")
    assert (en.integer(2215), de.integer(2215)) == ("2,215", "2215")
    assert (en.integer(12345), de.integer(12345)) == ("12,345", "12\u202f345")
    assert (en.number(0.5, 2), de.number(-0.5, 2)) == ("0.50", "−0,50")
    assert (en.percent(0.0451), de.percent(0.0451)) == ("4.5%", "4,5\u202f%")
    assert (en.epsilon(7.981), de.epsilon(7.981)) == ("7.99", "7,99")
    assert en.epsilon(8.0) == "8.00"
    assert en.remaining(0.0199) == "0.01"
    assert de.epsilon(None, True) == "∞"
    assert (de.power(1e-5), de.power(4.5e-6)) == ("10⁻⁵", "4,5·10⁻⁶")
    assert de.shortest(1.0) == "1"
    assert de.date("2026-11-22T17:15:00Z") == "22. November 2026, 17:15 Uhr (UTC)"
    assert en.date("2026-11-02") == "2 November 2026"
    assert en.date("nonsense") == "nonsense"
    assert de.listing(["a", "b", "c"]) == "a, b und c"
    with pytest.raises(ConfigError):
        Language("fr")


def test_both_languages_say_the_same_things(faces):
    """Same sections, same blocks, same figures."""
    shapes = []
    for lang in LANGUAGES:
        doc = document(faces("controller", lang)[0], Language(lang))
        shapes.append(
            [
                (s["id"], [(b["kind"], len(b.get("items", b.get("rows", ())))) for b in s["blocks"]])
                for s in doc["sections"]
            ]
        )
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_largest_auc_never_stands_alone_and_the_baseline_is_the_controllers(run, lang):
    t = Language(lang)
    facts = facts_module.read(run)
    for edition in ("controller", "public"):
        shown = replace(facts, edition=edition)
        blocks = [block for section in document(shown, t)["sections"] for block in section["blocks"]]
        rows = {name: value for block in blocks if block["kind"] == "rows" for name, value in block["rows"]}
        assert t.number(facts.audit.auc.max_by_chance, 3) in rows[t("risk.auc.max")]
        baseline = t.number(facts.audit.baseline_max.mean, 3)
        assert (baseline in rows.get(t("risk.baseline"), "")) == (edition == "controller")


@pytest.mark.parametrize("lang", ["en", "de"])
def test_the_boxes_that_are_announced_are_the_boxes_that_are_there(run, lang):
    facts, t = facts_module.read(run), Language(lang)
    sections = {section["id"]: section for section in document(facts, t)["sections"]}
    boxes = [block for block in sections["mechanism"]["blocks"] if block["kind"] == "ticks"][-1]["items"]
    assert {box["state"] for box in boxes} == {"open"}
    assert facts.open_checks == len(boxes) == len({box["text"] for box in boxes}) == 8
    told = t("risk.person_checks", boxes=t.integer(8))
    assert told in str(document(facts, t)["sections"])


@pytest.mark.parametrize("lang", ["en", "de"])
def test_ticks_at_equal_distances_read_as_equal_distances(lang):
    t = Language(lang)
    for top in (0.021, 0.1, 0.3, 1.0):
        figure = figures._rows(t, [("a", top / 2, 0.0, top, 20)], "share", percent=True)
        figure.canvas.draw()
        told = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        numbers = [float(text.rstrip("\u00a0\u202f %").replace(",", ".")) for text in told]
        steps = {round(b - a, 6) for a, b in itertools.pairwise(numbers)}
        assert len(steps) == 1, told

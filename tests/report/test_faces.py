"""HTML and PDF: built in both languages and editions, every number from the facts, links, contrast, pages."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from importlib.resources import files

import pytest

from dptrain.report import figures
from dptrain.report.build import build
from dptrain.report.faces import html, render
from dptrain.report.facts import read as read_facts
from dptrain.report.language import Language, table
from dptrain.report.sections.promise import promise
from dptrain.report.sections.risk import risk
from dptrain.report.shapes import Facts
from tests.report.text import html_text, numbers, read

BOTH = list(itertools.product(("controller", "public"), ("en", "de")))
CSS = files("dptrain.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
TYPST = files("dptrain.report").joinpath("templates", "report.typ").read_text(encoding="utf-8")


def pdf_text(content: bytes) -> str:
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed")
    done = subprocess.run(["pdftotext", "-layout", "-", "-"], input=content, capture_output=True, check=True)
    return done.stdout.decode().replace("\u200b", "")


def leaves(value, key=""):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from leaves(inner, name)
    elif isinstance(value, list):
        yield len(value)
        for inner in value:
            yield from leaves(inner, key)
    else:
        yield value


def known(facts, lang):
    """Every way in which the report may write a number of the facts, and the numbers of its own sentences."""
    t = Language(lang)
    allowed = set()
    for leaf in leaves(facts.to_json()):
        if isinstance(leaf, str):
            allowed |= numbers(leaf) | numbers(t.date(leaf))
            try:
                leaf = float(leaf)
            except ValueError:
                continue
        if isinstance(leaf, bool) or leaf is None:
            continue
        for value in (leaf, 100 * leaf, 1 - leaf, 100 * (1 - leaf)):
            for digits in range(5):
                allowed |= numbers(t.number(value, digits))
            allowed |= {
                t.epsilon(value),
                t.remaining(value),
                t.shortest(value),
                t.shortest(value, 3),
                t.integer(value),
            }
    for sentences in table().values():
        allowed |= numbers(re.sub(r"\{\w+\}", "x", sentences[lang]))
    return allowed


@pytest.mark.parametrize(("edition", "lang"), BOTH)
def test_every_number_comes_from_the_facts(faces, edition, lang):
    facts, made = faces(edition, lang)
    allowed = known(facts, lang)
    page = read(made["report.html"].decode())
    sections = {str(n) for n in range(1, 20)}
    strange = numbers(html_text(made["report.html"].decode())) - allowed - sections
    assert not strange
    for tag, attributes in page.tags:
        if tag == "svg" and attributes.get("aria-label"):
            assert not numbers(attributes["aria-label"]) - allowed  # type: ignore[arg-type]
    pages = {str(n) for n in range(1, 40)}
    text = pdf_text(made["report.pdf"])
    for number in sorted(allowed, key=len, reverse=True):  # the PDF's text has plain spaces between thousands
        if "\u202f" in number:
            text = text.replace(number.replace("\u202f", " "), " ")
    strange = numbers(text) - allowed - sections - pages
    assert not strange


@pytest.mark.parametrize(("edition", "lang"), BOTH)
def test_a_number_is_the_same_on_every_face(faces, edition, lang):
    facts, made = faces(edition, lang)
    t = Language(lang)
    epsilon = t.epsilon(facts.privacy.epsilon)
    for text in (html_text(made["report.html"].decode()), pdf_text(made["report.pdf"])):
        assert re.search(rf"ε\s=\s{re.escape(epsilon)}", text)
        assert t.number(facts.utility.overall["auroc"].value, 3) in text
    assert json.loads(made["facts.json"])["privacy"]["epsilon"] == facts.privacy.epsilon


@pytest.mark.parametrize(("edition", "lang"), BOTH)
def test_the_page_is_whole_and_asks_for_nothing(faces, edition, lang):
    page = faces(edition, lang)[1]["report.html"].decode()
    seen = read(page)
    ids = [attributes["id"] for _, attributes in seen.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for tag, attributes in seen.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form", "input", "base", "img")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href", "aria-labelledby"):
            target = attributes.get(name)
            if not target or target == "data:,":
                continue
            assert name == "aria-labelledby" or target.startswith("#"), target
            assert target.removeprefix("#") in ids, target
    assert seen.tags[0] == ("html", {"lang": lang})
    assert f'<html lang="{lang}">' in page
    outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"https?://|url\((?!#)|@import|//cdn", outside)


@pytest.mark.parametrize(("edition", "lang"), BOTH)
def test_every_drawing_has_a_text_alternative(faces, edition, lang):
    seen = read(faces(edition, lang)[1]["report.html"].decode())
    drawings = [attributes for tag, attributes in seen.tags if tag == "svg" and attributes.get("class") is None]
    assert len(drawings) >= 9
    assert all(attributes.get("role") == "img" and len(attributes["aria-label"]) > 40 for attributes in drawings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("edition", "lang"), BOTH)
def test_pages_and_fonts_of_the_pdf(faces, edition, lang, tmp_path):
    content = faces(edition, lang)[1]["report.pdf"]
    assert content.startswith(b"%PDF-1.7")
    if shutil.which("pdfinfo") is None:
        pytest.skip("pdfinfo is not installed")
    path = tmp_path / "report.pdf"
    path.write_bytes(content)
    info = subprocess.run(["pdfinfo", path], capture_output=True, text=True, check=True).stdout
    pages = int(re.search(r"Pages:\s+(\d+)", info)[1])
    assert 10 <= pages <= 20
    assert "Tagged:          yes" in info
    assert "JavaScript:      no" in info
    text = pdf_text(content)
    first = text.split("\f")[0]
    t = Language(lang)
    assert t("decision.risks") in first
    assert t("contents") in text.split("\f")[1]
    for number, page in enumerate(text.rstrip("\f").split("\f"), 1):
        assert f"{t('page')} {number} / {pages}" in re.sub(r" +", " ", page)
    fonts = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True).stdout.splitlines()[2:]
    assert fonts
    assert all(re.search(r"\syes\s+(yes|no)\s+(yes|no)\s+\d+\s+\d+$", line) for line in fonts), (
        "a font is not embedded"
    )


def test_what_is_copied_from_the_pdf_is_what_was_set(faces):
    """A ledger head with invisible characters in it would match nothing."""
    facts, made = faces("controller", "en")
    text = pdf_text(made["report.pdf"])
    assert "\u200b" not in text
    assert facts.ledger.head.hash in "".join(text.split())


def test_signature_block_is_in_the_controllers_edition(faces):
    t = Language("de")
    assert t("signature.sign") in pdf_text(faces("controller", "de")[1]["report.pdf"])
    assert t("signature.sign") not in pdf_text(faces("public", "de")[1]["report.pdf"])


def test_what_is_not_covered_is_marked(faces):
    for lang in ("en", "de"):
        page = faces("public", lang)[1]["report.html"].decode()
        for section in ("risk", "utility"):
            part = page[page.index(f'<section id="{section}"') :][:600]
            assert Language(lang)("mark") in part


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_meets_wcag_aa():
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", CSS))
    grounds = {
        "ink": ("page", "band", "warn-page", "bad-page"),
        "soft": ("page", "band"),
        "accent": ("page",),
        "warn": ("page", "warn-page"),
        "bad": ("page", "bad-page"),
        "good": ("page",),
    }
    pairs = [(text, ground) for text, several in grounds.items() for ground in several]
    for text, ground in pairs:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    used = set(re.findall(r"(?<!-)color: var\(--([\w-]+)\)", CSS))
    assert used <= {text for text, _ in pairs}, "a text colour without a tested ground"
    assert set(re.findall(r'rgb\("(#[0-9a-f]{6})"\)', TYPST)) <= set(colours.values()), (
        "PDF and HTML share their colours"
    )
    for colour in (figures.BLUE, figures.ORANGE, figures.GREEN, figures.INK, figures.SOFT):
        assert contrast(colour, "#ffffff") >= 4.5
    assert min(re.findall(r"font-size: \.(\d+)rem", CSS)) >= "8"


def test_drawings_can_be_read_in_black_and_white(faces):
    facts = faces("controller", "en")[0]
    curve = figures.draw("tradeoff_measured", facts, Language("en"))
    dashes = set(re.findall(r"stroke-dasharray: ([\d., ]+)", curve))
    assert len(dashes) >= 3  # measured, proved by canaries, guessing
    bar = figures.draw("budget", facts, Language("en"))
    assert len(set(re.findall(r'<pattern id="([^"]+)"', bar))) == 2


def test_the_figure_holds_promise_proof_and_measurement_on_one_curve(edited):
    """The canaries' lower bound is drawn and named; without a promise the measurement is drawn all the same."""
    x, y = figures.lower_curve(1.317, 1e-5)
    lost = [math.log((b - 1e-5) / a) for a, b in zip(x, y, strict=True) if a > 0 and b > 1e-5]
    assert max(lost) == pytest.approx(1.317, abs=0.03)  # the tangent of (epsilon, delta) touches it
    assert (x[0], y[0], x[-1], y[-1]) == (0.0, 0.0, 1.0, 1.0)
    for epsilon in (0.01, 8.0, 30.0):
        assert all(b >= a - 1e-12 for a, b in zip(*figures.lower_curve(epsilon, 1e-5), strict=True))
    private = edited()
    nothing = edited(
        lambda v: v["privacy"].update(
            epsilon=None, infinite=True, tradeoff=None, advantage=None, mechanisms=[], epsilon_over_steps=[]
        )
    )
    for folder, name in ((private, "tradeoff_measured"), (nothing, "tradeoff_open")):
        facts = read_facts(folder)
        assert facts.audit is not None
        assert facts.audit.canary is not None
        bound = facts.audit.canary.epsilon_lower
        for lang in ("en", "de"):
            t = Language(lang)
            blocks = promise(facts, t)["blocks"]
            block = next(b for b in blocks if b["kind"] == "figure" and b["name"].startswith("tradeoff"))
            assert block["name"] == name
            for part in ("caption", "alt"):
                assert block[part].endswith(t(f"figure.tradeoff_canary.{part}", bound=t.number(bound, 2)))
            with_bound = figures.draw(name, facts, t)
            canary = replace(facts.audit.canary, epsilon_lower=0.0)
            unproved = replace(facts, audit=replace(facts.audit, canary=canary))
            assert with_bound.count("stroke-dasharray") > figures.draw(name, unproved, t).count("stroke-dasharray")
            assert "proved" not in json.dumps(promise(unproved, Language("en")))


def test_an_extrapolated_rate_is_called_so_wherever_it_stands(edited):
    facts = read_facts(edited())
    called = {"en": "extrapolated; counted from 220 models", "de": "extrapoliert; gezählt ab 220 Modellen"}
    for lang, words in called.items():
        t = Language(lang)
        measured = json.dumps(risk(facts, t), ensure_ascii=False)
        assert words in measured
        assert t("risk.withheld") not in measured
        star = json.dumps(promise(facts, t), ensure_ascii=False)
        assert t("promise.table.note.extrapolated", need="220") in star


def test_the_same_facts_give_the_same_bytes(faces):
    _, made = faces("controller", "en")
    assert render(Facts.of(json.loads(made["facts.json"])), "en") == made


def test_the_controllers_edition_is_closed_to_others(edited):
    folder = edited()
    target = build(folder, "en")
    assert target == folder / "restricted" / "report"
    assert target.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o600}
    assert "report written" in (folder / "restricted" / "access.log").read_text()
    assert not (folder / "report").exists()


def test_incomplete_runs_still_give_a_report(edited):
    """Only the audit is left; and a run without noise; and one without any piece beside run.json."""
    torn = edited()
    (torn / "run.json").write_text("{")
    bare = edited(with_metrics=False, with_audit=False)
    public = edited(
        lambda v: v["privacy"].update(
            epsilon=None, infinite=True, tradeoff=None, advantage=None, mechanisms=[], epsilon_over_steps=[]
        )
    )
    for folder, key in ((torn, "warning.incomplete"), (bare, "warning.audit_missing"), (public, "warning.infinite")):
        target = build(folder, "de")
        text = html_text((target / "report.html").read_text())
        assert Language("de")(key) in text.split(Language("de")("contents"))[0], "on page one"
        assert (target / "report.pdf").stat().st_size > 20_000


def test_html_needs_every_value():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        html({"lang": "en", "sections": []}, {})


def test_public_html_and_pdf_hold_nothing_unreleased(edited):
    folder = edited()
    target = build(folder, "en", "public")
    text = html_text((target / "report.html").read_text()) + pdf_text((target / "report.pdf").read_bytes())
    text += (target / "registry.yaml").read_text() + (target / "MODEL_CARD.md").read_text()
    for planted in ("0.982", "0.9821", "37", "0.951", "0.778", "1.32", "0.993"):
        assert planted not in numbers(text), planted

"""What each setting is, from its declaration: lines for `--help`, and the page docs/settings.md.

`python -m dptrain.settings.help` writes the page.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import yaml

from dptrain.settings.fields import HELP, Kind, origin_of
from dptrain.settings.names import GROUPS
from dptrain.settings.run import Settings
from dptrain.settings.typed import plain
from dptrain.shipped import shipped

INTRODUCTION = """\
# Settings

Every setting of a run, with its kind and its default. A word `name=value` sets one; `group=option` takes the
values of a file in `conf/`; `recipe=NAME` takes those of a recipe.

- What is typed wins over the recipe, and the recipe over the defaults. `data=…` and `model=…` take the place of all
  that a recipe says of data or model; of any other group the recipe keeps what the chosen option does not say.
- A name that does not exist is refused, and so is a value of the wrong kind or range, before anything is read.
- A text with spaces, umlauts or one of `= , ( ) # '` needs quotes within quotes: `"data.root='data/Röntgen'"`.
- `${name}` takes the value of another setting. Nothing else is resolved: no environment variable gets in.
- An entry that is not there yet is added with `+` (`+data.keep.site=A`), one that is there is taken away with `~`.
- `.inf` and `inf` are infinity; `null` is nothing.

This page is made from the code (`make settings`)."""


def lines(section: str) -> dict[str, str]:
    """`privacy.delta=null` -> what it is, for every setting of a section and those below it."""
    return {f"{name}={shown(value)}": text for name, _, value, text in _fields(section)}


def page() -> str:
    """The page docs/settings.md."""
    pieces = [INTRODUCTION, _groups()]
    for section, kind in [("", Settings), *_sections(Settings, "")]:
        summary = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
        rows = [
            f"| `{name}` | {_words(hint)} | `{shown(value)}` | {text} |".replace("``", "")
            for name, hint, value, text in _fields(section, below=False)
        ]
        table = ["| setting | kind | default | what it is |", "|---|---|---|---|", *rows]
        pieces.append("\n".join([f"## {section or 'All'}", "", summary, "", *table]))
    return "\n\n".join(pieces) + "\n"


def shown(value: object) -> str:
    """A default as a word gives it; a long one shortened."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    text = text.replace("\n...", "").strip()
    return text if len(text) <= 40 else f"{text[:38]}…"


def _groups() -> str:
    rows = []
    for group in GROUPS:
        options = sorted(file.stem for file in (shipped("conf") / group).glob("*.yaml"))
        if group == "recipe":
            options += sorted(path.parents[1].name for path in shipped("recipes").glob("*/recipe/*.yaml"))
        rows.append(f"| `{group}` | {', '.join(options)} |")
    return "\n".join(["## Groups", "", "| group | options |", "|---|---|", *rows])


def _sections(kind: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield f"{prefix}{name}", hint
            yield from _sections(hint, f"{prefix}{name}.")


def _fields(section: str, *, below: bool = True) -> Iterator[tuple[str, Kind, object, str]]:
    """Name, declared type, default and help line of each setting of a section."""
    part: object = Settings()
    for name in filter(None, section.split(".")):
        part = getattr(part, name)
    assert dataclasses.is_dataclass(part)
    hints = typing.get_type_hints(type(part))
    for field in dataclasses.fields(part):
        name = f"{section}.{field.name}".lstrip(".")
        if HELP in field.metadata:
            yield name, hints[field.name], plain(getattr(part, field.name)), field.metadata[HELP]
        elif below:
            yield from _fields(name)


KINDS = {str: "text", bool: "true or false", int: "whole number", float: "number", typing.Any: "any"}


def _words(hint: Kind) -> str:
    """A declared type in words."""
    origin, inner = origin_of(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if type(None) in inner:
            return f"{_words(inner[0])} or null"
        return "number"
    if origin is list:
        return f"list of {_plural(_words(inner[0]))}"
    if origin is dict:
        return f"name: {_words(inner[1])}"
    return KINDS[hint] if hint in KINDS else " or ".join(str(member) for member in hint)


def _plural(word: str) -> str:
    return word if word == "any" else f"{word}s"


def main() -> None:
    """Write docs/settings.md of this checkout."""
    (Path(shipped("docs")) / "settings.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

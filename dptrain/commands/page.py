"""docs/commands.md, made from the declarations: `python -m dptrain.commands.page > docs/commands.md`."""

from __future__ import annotations

from dptrain.commands.help import help_text
from dptrain.commands.table import COMMANDS, members

HEAD = """\
# Commands

What `dptrain COMMAND --help` says, of every command, in the order of `dptrain --help`. Settings (`data.…`, `model.…`,
`privacy.…`) are explained in `conf/`. This page is made from the program: `python -m dptrain.commands.page`.
"""


def page() -> str:
    """The page's text."""
    return "\n".join([HEAD, *(section(name) for name in COMMANDS)])


def section(name: str) -> str:
    """One command: a heading, and its help."""
    text = help_text(COMMANDS[name], members(name))
    return f"{'###' if ' ' in name else '##'} dptrain {name}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    print(page(), end="")

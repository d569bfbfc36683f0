"""What the command line says of itself, made from the declarations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dptrain.commands.command import Command, Takes
from dptrain.settings.help import lines
from dptrain.shipped import shipped
from dptrain.terminal.words import Word

EXIT_CODES = {
    0: "done",
    2: "usage or configuration",
    3: "refused by the ledger",
    4: "refused by the check",
    5: "data unreadable",
    6: "the guarantee is broken",
    1: "internal error",
    130: "interrupted",
}
SETTINGS = "Settings as for `dptrain train` (recipe=…, data.…, privacy.…) may follow."
EXAMPLES = """\
examples:
  dptrain plan public_size=2215 privacy.expected_batch_size=600 privacy.target_epsilon=3
  dptrain ledger register recipe=chest_xray_pneumonia public_size=2215 owner="Radiology"
  dptrain ledger budget cohort=chest_xray_pneumonia epsilon=8 recipe=chest_xray_pneumonia reason="study"
  dptrain train recipe=chest_xray_pneumonia privacy.target_epsilon=8
  dptrain train -m recipe=chest_xray_pneumonia privacy.target_epsilon=1,2,4
  dptrain audit run=runs/demo
  dptrain report run=runs/demo lang=de"""


def overview(commands: Mapping[str, Command]) -> str:
    """The text of `dptrain --help`."""
    return "\n\n".join(
        [
            "dptrain: differentially private training for medical imaging",
            "usage: dptrain COMMAND [name=value …]      dptrain COMMAND --help",
            columns({name: command.line for name, command in commands.items() if " " not in name}),
            EXAMPLES,
            exit_codes(tuple(EXIT_CODES)),
            f"documentation: {shipped('docs')}",
        ]
    )


def help_text(command: Command, members: Sequence[Command] = ()) -> str:
    """The text of `dptrain NAME --help`; `members` are the commands below this one."""
    words = {name: word.help + default_text(word) for name, word in command.words.items()}
    pieces = [
        f"usage: {usage(command)}",
        command.about or sentence(command.line),
        columns({member.name.removeprefix(f"{command.name} "): member.line for member in members}),
        ("" if command.run else "every command takes\n") + columns({**words, **command.flags}),
        SETTINGS if command.takes is Takes.SETTINGS else "",
        "\n".join(["examples:", *(f"  {line}" for line in command.examples)]) if command.examples else "",
        "\n".join(["settings (docs/settings.md has all):", *(columns(lines(name)) for name in command.sections)])
        if command.sections
        else "",
        command.notes,
        exit_codes((0, 2, *command.codes)),
    ]
    return "\n\n".join(piece for piece in pieces if piece)


def sentence(line: str) -> str:
    """A line of the list of commands as a sentence of its own."""
    return f"{line[:1].upper()}{line[1:]}{'' if line[-1] in '.?' else '.'}"


def usage(command: Command) -> str:
    """How a command is typed, in one line."""
    if not command.run:
        return f"dptrain {command.name} COMMAND [name=value …]      dptrain {command.name} COMMAND --help"
    required = [f"{name}=…" for name, word in command.words.items() if word.default is ...]
    more = len(required) < len(command.words) or command.takes is not Takes.WORDS
    flags = [f"[{flag}]" for flag in command.flags]
    return " ".join(["dptrain", command.name, *required, *(["[name=value …]"] if more else []), *flags])


def default_text(word: Word) -> str:
    """What a word's help says of its default; a default of None, no or nothing speaks for itself."""
    if word.default is ...:
        return " (required)"
    if word.default is None or word.default is False or word.default == ():
        return ""
    return f" (default: {'yes' if word.default is True else word.default})"


def columns(rows: Mapping[str, str]) -> str:
    """Names and what they mean, in two columns."""
    width = max(map(len, rows), default=0)
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in rows.items())


def exit_codes(codes: Sequence[int]) -> str:
    """What these exit codes mean, in one line, or two where one does not hold them."""
    texts = [f"{code} {EXIT_CODES[code]}" for code in codes]
    lines = [texts] if len(texts) < 6 else [texts[:4], texts[4:]]
    return "exit codes: " + "\n            ".join(" · ".join(line) for line in lines)

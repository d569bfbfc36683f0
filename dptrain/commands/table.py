"""Every command, in the order of `dptrain --help`: find one, say what it takes, run it."""

from __future__ import annotations

from collections.abc import Sequence

from dptrain.commands.attack import ATTACK
from dptrain.commands.audit import AUDIT
from dptrain.commands.check import CHECK
from dptrain.commands.command import Command
from dptrain.commands.completion import COMPLETION
from dptrain.commands.demo import DEMO
from dptrain.commands.evaluate import EVALUATE
from dptrain.commands.help import help_text, overview
from dptrain.commands.ledger.approvals import APPLY, APPROVER, INVENTORY, RULE, SIGN
from dptrain.commands.ledger.controller import BUDGET, CONTROLLER, PERMIT, REVOKE, UNLOCK, WEIGHTS
from dptrain.commands.ledger.family import LEDGER
from dptrain.commands.ledger.keys import BACKUP, INIT, KEYGEN, MIGRATE, ROTATE
from dptrain.commands.ledger.look import HEADS, HISTORY, SHOW, VERIFY
from dptrain.commands.ledger.steward import CLOSE, LOCK, REGISTER, WITHDRAW
from dptrain.commands.plan import PLAN
from dptrain.commands.predict import PREDICT
from dptrain.commands.rehearse import REHEARSE
from dptrain.commands.release import RELEASE
from dptrain.commands.report import REPORT, REPORT_LEDGER, REPORT_VERIFY
from dptrain.commands.train import TRAIN
from dptrain.errors import EXIT_DONE, EXIT_USAGE, ConfigError
from dptrain.terminal.words import suggest

# fmt: off
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        PLAN, REHEARSE, CHECK, TRAIN, EVALUATE, PREDICT, AUDIT, ATTACK,
        REPORT, REPORT_LEDGER, REPORT_VERIFY, RELEASE,
        LEDGER, INIT, KEYGEN, REGISTER, BUDGET, WEIGHTS, SHOW, HISTORY, VERIFY, HEADS,
        LOCK, UNLOCK, PERMIT, REVOKE, WITHDRAW, CLOSE,
        SIGN, APPLY, APPROVER, RULE, CONTROLLER, INVENTORY, ROTATE, BACKUP, MIGRATE,
        DEMO, COMPLETION,
    )
}
# fmt: on
HELP = ("-h", "--help")


def members(name: str) -> list[Command]:
    """The commands below one, e.g. `ledger show` below `ledger`."""
    return [command for other, command in COMMANDS.items() if other.startswith(f"{name} ")]


def find(argv: Sequence[str]) -> tuple[Command, list[str]]:
    """The command that is typed, and the words after it.

    Raises ConfigError with the nearest names for one that does not exist.
    """
    for length in (2, 1):
        command = COMMANDS.get(" ".join(argv[:length])) if len(argv) >= length else None
        if command is not None and (command.run or len(argv) == length or argv[length] in (*HELP, "help")):
            return command, list(argv[length:])
    name = " ".join(argv[: 1 + (argv[0] in COMMANDS)])
    siblings = [other.partition(" ")[2] for other in COMMANDS if other.startswith(f"{argv[0]} ")]
    raise ConfigError(
        f"There is no command '{name}'.",
        remedy=suggest(argv[1], siblings) if argv[0] in COMMANDS else suggest(argv[0], tops()),
    )


def tops() -> list[str]:
    """The names of one word."""
    return [name for name in COMMANDS if " " not in name]


def run(argv: Sequence[str]) -> int:
    """Run one command (or `help`, or nothing at all); returns its exit code. Raises DptrainError."""
    if not argv or argv[0] in (*HELP, "help"):
        print(overview(COMMANDS))
        return EXIT_DONE if argv else EXIT_USAGE
    command, words = find(argv)
    wants_help = words[:1] == ["help"] or any(word in HELP for word in words)
    if wants_help or not command.run:
        print(help_text(command, members(command.name)))
        return EXIT_DONE if wants_help else EXIT_USAGE
    return command.load()(command.read(words))

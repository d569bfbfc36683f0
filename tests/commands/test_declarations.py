"""Every command is declared once; help, the page and the examples follow from the declaration."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dptrain.commands.command import Call, Command, Takes
from dptrain.commands.page import page
from dptrain.commands.table import COMMANDS, find, members
from dptrain.errors import ConfigError
from dptrain.settings.names import GROUPS, setting_names
from dptrain.settings.places import recipe_folders
from dptrain.terminal.words import Word

ROOT = Path(__file__).parents[2]
RUNNABLE = [command for command in COMMANDS.values() if command.run]


def test_help_of_every_command_needs_nothing_heavy() -> None:
    """In a fresh process: a declaration, its help and the page import nothing that computes."""
    code = (
        "import sys\n"
        "from dptrain.commands.page import page\n"
        "from dptrain.commands.table import COMMANDS, run\n"
        "page()\n"
        "assert all(run([*name.split(), '--help']) == 0 for name in COMMANDS)\n"
        "heavy = {'torch', 'monai', 'opacus', 'numpy', 'scipy', 'hydra', 'omegaconf', 'sqlalchemy',\n"
        "         'dp_accounting', 'matplotlib', 'jinja2', 'rich', 'cryptography'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_page_is_what_the_program_says() -> None:
    written = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert written == page(), "python -m dptrain.commands.page > docs/commands.md"


@pytest.mark.parametrize("command", RUNNABLE, ids=lambda command: command.name)
def test_every_command_has_a_function_in_the_module_of_its_name(command: Command) -> None:
    assert callable(command.load())
    module, _, function = command.run.partition(":")
    assert module.startswith("dptrain.commands.acts.")
    assert command.name.split()[-1] in (function, function.rpartition("_")[2])


@pytest.mark.parametrize("command", RUNNABLE, ids=lambda command: command.name)
def test_every_example_can_be_typed(command: Command) -> None:
    """Its words parse, and its settings and recipes exist."""
    assert command.examples
    names = set(setting_names())
    for line in "\n".join(command.examples).replace("\\\n", "").splitlines():
        typed = shlex.split(line.removeprefix('eval "$(').removesuffix(')"'), comments=True)
        if ">" in typed:
            typed = typed[: typed.index(">")]
        typed_command, words = find(typed[1:])
        assert typed_command is command, line
        for setting in command.read(words).settings:
            name, equals, value = setting.lstrip("+~").partition("=")
            if name == "recipe":
                assert value in recipe_folders(), line
            elif equals and setting[0] not in "+~" and not name.startswith(("hydra", "model.network.")):
                assert name in names, line


def test_words_of_a_command_do_not_hide_settings() -> None:
    """A word that a command takes itself would never reach the settings."""
    for command in RUNNABLE:
        if command.takes is not Takes.WORDS:
            assert not set(command.words) & set(GROUPS), command.name


def test_a_head_lists_its_members() -> None:
    assert [command.name for command in members("report")] == ["report ledger", "report verify"]
    assert find(["report", "run=x"])[0].name == "report"
    assert find(["ledger", "show", "cohort=x"]) == (COMMANDS["ledger show"], ["cohort=x"])
    with pytest.raises(ConfigError, match="no command 'ledger shwo'") as caught:
        find(["ledger", "shwo"])
    assert caught.value.remedy == "Did you mean show?"
    with pytest.raises(ConfigError, match="no command 'trian'"):
        find(["trian", "ledger"])


MIXED = Command(
    name="mixed",
    line="takes both",
    run="here:there",
    words={"size": Word(int, "a size"), "ledger.url": Word(str, "a place", None)},
    takes=Takes.SETTINGS,
    flags={"--json": "for a program"},
)


def test_words_settings_and_flags_are_told_apart() -> None:
    call = MIXED.read(["recipe=x", "size=3", "+data.extra=1", "~model", "--json", "ledger.url=here", "name=n"])
    assert call == Call(
        {"size": 3, "ledger.url": "here"}, ("recipe=x", "+data.extra=1", "~model", "name=n"), frozenset({"--json"})
    )
    assert call.as_json


@pytest.mark.parametrize(
    ("word", "near"),
    [("sise=3", "size"), ("ledger.urll=x", "ledger.url"), ("--jsn", "--json"), ("size", "size"), ("-m", "Valid")],
)
def test_a_misspelt_word_is_never_taken_for_a_setting(word: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MIXED.read(["size=3", word])
    assert near in str(caught.value)


def test_what_hydra_takes_goes_through_as_it_was_typed() -> None:
    words = ["-m", "privacy.target_epsilon=1,2", "--cfg", "job", "run_=x"]
    call = COMMANDS["audit"].read([*words, "run=runs/demo"])
    assert call.settings == tuple(words)
    assert call.words == {"run": "runs/demo"}


def test_a_folder_alone_stands_for_its_word(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    for typed, meant in (("runs/demo", "runs/demo"), (str(odd), str(odd)), ("run=runs/demo", "runs/demo")):
        assert COMMANDS["report verify"].read([typed]).words["run"] == meant

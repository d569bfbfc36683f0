"""Words that Hydra reads otherwise are answered with the word to paste, in nobody else's language."""

from __future__ import annotations

import re
import subprocess

import pytest

from dptrain import cli
from dptrain.errors import ConfigError
from dptrain.settings import load

VALUES = [
    "data/Röntgen",
    "data/a=b",
    "data/a,b",
    "data/(c)",
    "data/#h",
    "Köln",
    "it's",
    "Köln's $HOME",
    'a "b" c=',
    "50 % (rund)",
    "back\\slash=",
    "what?!",
    "emoji 🩻",
    "[half",
    "{half",
    "a\\' b=",
    "ends with \\",
]
LIBRARIES = ("Hydra", "OmegaConf", "Lexer", "mismatched", "EOF", "Exception", "--cfg", "Traceback", "Ambiguous")


def pasted(error: ConfigError) -> list[str]:
    """The words that a shell makes of what the remedy says to write."""
    found = re.search(r"(?:Write|write) (.+)$", error.remedy or "")
    assert found, error
    shell = subprocess.run(["bash", "-c", f"printf '%s\\0' {found.group(1)}"], capture_output=True, check=True)
    return shell.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("name", ["data.root", "data.issuer", "ledger.url", "+data.keep.site"])
@pytest.mark.parametrize("value", VALUES)
def test_the_word_that_is_told_gives_the_value_that_was_meant(name: str, value: str) -> None:
    try:
        settings, message = load([f"{name}={value}"]), ""
    except ConfigError as error:
        settings, message = load(pasted(error)), str(error)
    assert not any(word in message for word in LIBRARIES), message
    section, _, field = name.lstrip("+").partition(".")
    part = getattr(settings, section)
    assert (part.keep["site"] if field == "keep.site" else getattr(part, field)) == value


def test_words_of_one_value_are_put_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load(["data.issuer=Klinik", "am", "Köln", "privacy.steps=3"])
    assert load(pasted(caught.value)).data.issuer == "Klinik am Köln"


@pytest.mark.parametrize("word", ["data.classes=[Größe,Übel]", "data.classes=Größe,Übel", "data.classes=a,b"])
def test_a_list_is_told_as_a_list(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([word])
    assert load(pasted(caught.value)).data.classes == word.partition("=")[2].strip("[]").split(",")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer=adam", "optimizer=sgd"], "optimizer is given twice"),
        (["+privacy.steps=4"], "Write privacy.steps=4 without +"),
        (["~privacy.views"], "privacy.views cannot be taken away"),
        (["~model.network.foo"], "~ takes one away that is there"),
        (["+model.network.in_channels=3"], "does not take +model.network.in_channels=3"),
        (["model.network.foo=1"], "Write +model.network.foo=… to add it"),
        (["model=sequential"], "model.network.modules is not set"),
        (["model.network.num_classes=data.output"], "Did you mean data.outputs"),
        (["recipe=ecg_bets"], "Did you mean ecg_beats"),
        (["optimizer=adamm"], "There is no optimizer=adamm"),
        (["hydra.foo=1"], "There is no setting 'hydra.foo'"),
        (["+data.keep.Größe=1"], "cannot be written on the command line"),
        (["data.columns=x"], "data.columns is no group of settings"),
        (["optimizer@other=adam"], "cannot be put together"),
        (["privacy.target_epsilon=1,2"], "several values, which only a sweep takes"),
        (["data.classes=[true,false]"], "must be a text"),
    ],
)
def test_each_mistake_has_its_remedy(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(words)
    assert said in str(caught.value)
    assert caught.value.remedy
    assert not any(word in str(caught.value) for word in LIBRARIES)


@pytest.mark.parametrize("command", ["train", "audit", "check", "plan"])
def test_every_command_says_it_alike(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["public_size=100"] if command == "plan" else []
    assert cli.main([command, *more, "recipe=ecg_beats", "data.root=data/Röntgen"]) == 2
    assert "\"data.root='data/Röntgen'\"" in capsys.readouterr().err

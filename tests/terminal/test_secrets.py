"""Secrets come from the environment or from a person, and never out of nothing."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest

from dptrain.errors import ConfigError, LedgerRefused
from dptrain.terminal import secrets

ASKED = {
    "DPTRAIN_PASSPHRASE": secrets.passphrase,
    "DPTRAIN_NEW_PASSPHRASE": secrets.new_passphrase,
    "DPTRAIN_RECOVERY": secrets.recovery_code,
}


@pytest.fixture(params=ASKED)
def variable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv(request.param, raising=False)
    return str(request.param)


def typed(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """A person at a terminal who types these; returns what was asked."""
    asked: list[str] = []
    rest = iter(answers)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(secrets, "getpass", lambda prompt: (asked.append(prompt), next(rest))[1])
    return asked


def test_the_environment_is_asked_first(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "given")
    assert ASKED[variable]() == "given"


def test_without_a_person_it_is_refused_with_the_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("not for a script"))
    with pytest.raises(LedgerRefused, match=rf"is needed\.\nSet {variable}, or run this at a terminal"):
        ASKED[variable]()


@pytest.mark.parametrize("ask", [secrets.new_passphrase, lambda: secrets.passphrase(new=True)])
def test_a_new_passphrase_is_typed_twice(ask: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPTRAIN_PASSPHRASE", raising=False)
    monkeypatch.delenv("DPTRAIN_NEW_PASSPHRASE", raising=False)
    typed(monkeypatch, "correct horse", "correct horse")
    assert ask() == "correct horse"
    asked = typed(monkeypatch, "correct horse", "correct house")
    with pytest.raises(ConfigError, match="differ"):
        ask()
    assert asked[1] == "Once more: "


def test_an_existing_passphrase_is_typed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPTRAIN_PASSPHRASE", raising=False)
    asked = typed(monkeypatch, "correct horse")
    assert secrets.passphrase() == "correct horse"
    assert asked == ["Controller's passphrase: "]

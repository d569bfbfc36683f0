"""Ctrl-C, SIGTERM and failures: what an ended training lets go of, and what it says about the charge."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from dptrain.errors import LedgerRefused
from dptrain.ledger import Grant
from dptrain.records import RunFolder

Say = Callable[[str], None]


@dataclass
class Watch:
    """What an interruption must know: whether steps are running, and what is held."""

    asked: bool = False
    stepping: bool = False
    grant: Grant | None = None
    folder: RunFolder | None = None


@contextmanager
def watched(say: Say) -> Iterator[Watch]:
    """Ctrl-C or SIGTERM ends the training after the current step, at once where none runs or at the second one.

    A run that fails or ends at once gives back its reservation if it paid nothing; else it says how to go on.
    """
    watch = Watch()

    def on_signal(_number: int, _frame: object) -> None:
        if watch.asked or not watch.stepping:
            raise KeyboardInterrupt
        watch.asked = True
        say("ending after this step (Ctrl-C again to stop at once)")

    before = {}
    with suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, on_signal)
    try:
        yield watch
    except BaseException as error:
        _let_go(watch, error, say)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_go(watch: Watch, error: BaseException, say: Say) -> None:
    """Give back what an ended run holds, or say that its charge stays open and what to do about it."""
    grant, folder = watch.grant, watch.folder
    if grant is None or folder is None or (grant.closed and grant.committed):
        return
    with suppress(Exception):  # the error on its way says more
        if grant.closed or grant.give_back():
            folder.facts.unlink(missing_ok=True)
            folder.access_log.unlink(missing_ok=True)
            folder.discard()
            say("nothing was paid: the reservation is given back")
            return
    if not isinstance(error, LedgerRefused):  # which has a remedy of its own
        say(
            f"run {grant.run} is still open ({grant.committed} steps paid). Go on with\n"
            f"  dptrain train training.resume={folder.path}\n"
            f"or close it with\n  dptrain ledger close run={grant.run} reason=…"
        )

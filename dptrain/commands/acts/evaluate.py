"""`dptrain evaluate`: score a run again."""

from __future__ import annotations

from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE
from dptrain.training.run import evaluate_run


def evaluate(call: Call) -> int:
    """Score a finished run."""
    places = {name: call.words[f"ledger.{name}"] for name in ("url", "keys", "witness")}
    path = evaluate_run(call.words["run"], split=call.words["split"], ledger=places)
    print(f"metrics (restricted, not covered by epsilon): {path}")
    return EXIT_DONE

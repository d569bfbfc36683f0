"""What the controller signs: budgets, weights, permissions, the end of a lock.

`budget` and `weights` accept a recipe and settings; configuration, and torch for a recipe's network, are imported
only then, so that `dptrain ledger unlock` starts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from dptrain.commands.acts.ledger.desk import decided, no_run, opened, show_one, state_of
from dptrain.commands.command import Call
from dptrain.errors import EXIT_DONE, ConfigError, LedgerRefused
from dptrain.files import file_sha256
from dptrain.ledger import gate
from dptrain.ledger.decisions import (
    budget_body,
    controller_body,
    permission_body,
    revocation_body,
    unlock_body,
    weights_body,
)
from dptrain.ledger.facts import BudgetTerms
from dptrain.ledger.status import CohortStatus
from dptrain.plan import Mechanism, default_delta
from dptrain.terminal.output import Output
from dptrain.terminal.words import Words
from dptrain.vocabulary import PICTURES, BudgetKind

MOST_RUNS = 1000  # of a declaration


def budget(call: Call) -> int:
    """Grant a budget, or raise it."""
    out, words = Output(as_json=call.as_json), call.words
    ledger, keys = opened(words)
    before = ledger.status(words["cohort"])
    gate.check_epsilon(words["epsilon"])
    said = ("kind", "epsilon", "delta", "minimum_charge", "reason", "advice", "last_day")
    terms = BudgetTerms(forecast=_use(words, call.settings, before), **{name: words[name] for name in said})
    if not decided(words, ledger, keys, budget_body(ledger, words["cohort"], terms), out):
        return EXIT_DONE
    status = ledger.status(words["cohort"])
    out.say("Signed.")
    show_one(status, out)
    left_out, patients = ledger.forecast_of(words["cohort"])
    if left_out:
        out.say(
            f"For you alone (never for a report): {left_out} of {patients} patients would be left out of this run; "
            "they have withdrawn, or are spent in other cohorts."
        )
    out.give(status)
    return EXIT_DONE


def _use(words: Words, settings: Sequence[str], status: CohortStatus) -> tuple[Mechanism, ...]:
    """The use that the budget is for, from settings or from rate, steps and noise; none where a raise needs none."""
    runs = words["runs"]
    if not 1 <= runs <= MOST_RUNS:
        raise ConfigError(f"runs={runs} must be at least 1, and at most {MOST_RUNS}.")
    batch, steps, noise = words["expected_batch_size"], words["steps"], words["noise_multiplier"]
    if batch is None and steps is None and noise is None:
        if settings:
            one = one_run(settings, status.public_size, words["epsilon"], words["delta"])
            chosen = any(word.lstrip("+").startswith("privacy.noise_multiplier=") for word in settings)
            if (words["kind"] == BudgetKind.OPEN or runs > 1) and not chosen:
                training, *rest = one  # so much noise that all of them together fit the budget
                one = (_with_noise(training, words, status, also=tuple(rest) * runs), *rest)
            return one * int(runs)
        if words["kind"] == BudgetKind.OPEN and status.order is not None:
            return ()  # a raise keeps its order
        raise ConfigError(
            "a budget needs a forecast of its use: an open one gets its RDP order from it, a planned one its runs.",
            remedy="Give recipe=…, or expected_batch_size=… steps=… (and noise_multiplier=…).",
        )
    if batch is None or steps is None or settings:
        raise ConfigError("a forecast is either recipe=… (and settings), or expected_batch_size=… and steps=….")
    typical = Mechanism(batch / status.public_size, 1.0 if noise is None else noise, steps)
    if noise is None:
        typical = _with_noise(typical, words, status)
    return (typical,) * int(runs)


def _with_noise(one: Mechanism, words: Words, status: CohortStatus, also: tuple[Mechanism, ...] = ()) -> Mechanism:
    """The mechanism with the least noise at which all `runs` of it stay within epsilon, by the budget's own gate."""
    from dptrain.accounting import fitting_noise

    before = next((budget for budget in status.budgets if budget.kind == BudgetKind.OPEN), None)
    planned = words["kind"] == BudgetKind.PLANNED
    delta = words["delta"]
    if delta is None:
        delta = default_delta(status.public_size) if before is None or planned else before.delta
    order = None if before is None else before.order
    return fitting_noise(words["epsilon"], delta, one, words["runs"], also=also, planned=planned, order=order)


def one_run(words: Sequence[str], public_size: int, epsilon: float, delta: float | None) -> tuple[Mechanism, ...]:
    """The mechanisms of one run as these settings would train it, when it may cost epsilon."""
    from dptrain.settings import load
    from dptrain.training.planning import make_plan

    settings = load(
        [*words, f"privacy.target_epsilon={epsilon}", f"privacy.delta={'null' if delta is None else delta}"]
    )
    return make_plan(settings.privacy, public_size=public_size, unit=settings.data.unit).mechanisms


PACKAGE_LICENCE = "Apache-2.0"  # of the weights that dptrain.models.pretrained reads from packages


def weights(call: Call) -> int:
    """Declare weights public: those of a file, of a hash, or those that a recipe's network brings."""
    out, words = Output(as_json=call.as_json), call.words
    sha, source, licence, file = itemgetter("sha256", "source", "licence", "file")(words)
    if [sha, file, call.settings or None].count(None) != 2:
        raise ConfigError("give either file=… or sha256=…, or recipe=… for the weights that its network brings.")
    if call.settings:
        sha, its_source, its_licence = weights_of(call.settings)
        source, licence = source or its_source, licence or its_licence
    for name, value in (("source", source), ("licence", licence)):
        if value is None:
            raise ConfigError(
                f"'{name}' is missing: it is signed into the ledger, so it is never guessed.",
                remedy=f"Give {name}=… of the weights.",
            )
    if file is not None:
        try:
            sha = file_sha256(file)
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    ledger, keys = opened(words)
    if not decided(words, ledger, keys, weights_body(sha, source=source, licence=licence), out):
        return EXIT_DONE
    out.say(f"Declared public: weights {sha[:16]}… ({source}; {licence}).")
    out.give({"sha256": sha})
    return EXIT_DONE


def weights_of(settings: Sequence[str]) -> tuple[str, str | None, str | None]:
    """SHA-256 of the weights that a recipe starts from; source and licence where an installed package brings them.

    Raises ConfigError for a recipe that starts at random.
    """
    from dptrain.models.network import build_network
    from dptrain.settings import load

    network = build_network(load(settings))
    if network.weights is None:
        raise ConfigError("this recipe starts from random weights: there is nothing to declare.")
    if network.weights_kind != "package":
        return network.weights.sha256, None, None
    return network.weights.sha256, str(network.weights_note), PACKAGE_LICENCE


def permit(call: Call) -> int:
    """Permit."""
    out = Output(as_json=call.as_json)
    ledger, keys = opened(call.words)
    run, purpose, cohort, reason, last_day = itemgetter("run", "purpose", "cohort", "reason", "last_day")(call.words)
    with ledger.view() as (_, state):
        runs = list(state.runs)
    if run is not None and run not in runs and not call.words["other_ledger"]:
        refusal = no_run(run, runs)
        raise LedgerRefused(
            refusal.message,
            remedy=f"{refusal.remedy} Was it trained under another ledger? Then add other_ledger=yes.",
        )
    body = permission_body(ledger, purpose, cohort, reason=reason, run=run, last_day=last_day)
    if not decided(call.words, ledger, keys, body, out):
        return EXIT_DONE
    number = ledger.head().entries
    whose = "any run" if run is None else f"run '{run}'"
    what = PICTURES if purpose == PICTURES else f"one {purpose}"
    out.say(f"Permitted (entry {number}): {what} of '{cohort}', for {whose}.")
    out.give({"permit": number, "run": run})
    return EXIT_DONE


def unlock(call: Call) -> int:
    """Unlock."""
    out = Output(as_json=call.as_json)
    ledger, keys = opened(call.words)
    cohort, reason = itemgetter("cohort", "reason")(call.words)
    if not decided(call.words, ledger, keys, unlock_body(ledger, cohort, reason=reason), out):
        return EXIT_DONE
    status = ledger.status(cohort)
    out.say(f"The lock by hand is gone; '{status.name}' is {state_of(status)}.")
    out.give({"cohort": status.name, "locked": status.locked})
    return EXIT_DONE


def revoke(call: Call) -> int:
    """Withdraw a permission."""
    out = Output(as_json=call.as_json)
    ledger, keys = opened(call.words)
    number, reason = itemgetter("permit", "reason")(call.words)
    if decided(call.words, ledger, keys, revocation_body(ledger, number, reason=reason), out):
        out.say(f"Permission {number} is withdrawn.")
        out.give({"permit": number, "withdrawn": True})
    return EXIT_DONE


def controller(call: Call) -> int:
    """Show the controller of the processing, or name it."""
    out, words = Output(as_json=call.as_json), call.words
    ledger, keys = opened(words)
    name, represented_by, contact = itemgetter("name", "represented_by", "contact")(words)
    if name is not None or represented_by is not None:
        if name is None or represented_by is None:
            raise ConfigError("the controller is named with name=… and represented_by=….")
        body = controller_body(name, represented_by=represented_by, contact=contact)
        if not decided(words, ledger, keys, body, out):
            return EXIT_DONE
    person = ledger.controller()
    if person is None:
        out.say("Nobody has named the controller yet (dptrain ledger controller name=… represented_by=…).")
    else:
        name, represented_by, contact = itemgetter("name", "represented_by", "contact")(person)
        out.say(f"{name}, represented by {represented_by}" + (f", {contact}" if contact else ""))
    out.give(person or {})
    return EXIT_DONE

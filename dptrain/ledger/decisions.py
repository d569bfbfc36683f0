"""The controller's decisions: budgets, public weights, permissions, releases; locks, which anyone may set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dptrain import accounting
from dptrain.errors import ConfigError, LedgerRefused
from dptrain.ledger import gate, rules
from dptrain.ledger.approvals import Role
from dptrain.ledger.bodies import Body
from dptrain.ledger.book import Book
from dptrain.ledger.chain import Entry
from dptrain.ledger.checks import check_day, check_hashes, check_name, check_sha, check_texts, whole
from dptrain.ledger.facts import BudgetTerms, ReleaseTerms
from dptrain.ledger.kinds import (
    RULED,
    DeclareWeights,
    Lock,
    NameApprover,
    NameController,
    Permission,
    Release,
    Revoke,
    SetRule,
    SignedBudget,
    Unlock,
)
from dptrain.ledger.signing import Signer, check_public
from dptrain.ledger.state import ADJACENCY, Budget
from dptrain.plan import Mechanism, default_delta
from dptrain.vocabulary import PICTURES, BudgetKind, Purpose

if TYPE_CHECKING:
    from dptrain.accounting import Terms


def budget(
    book: Book,
    cohort: str,
    *,
    epsilon: float,
    delta: float | None = None,
    kind: str = BudgetKind.OPEN,
    forecast: Sequence[Mechanism],
    minimum_charge: float | None = None,
    reason: str,
    controller: Signer,
    advice: str | None = None,
    last_day: str | None = None,
) -> Budget:
    """Grant (epsilon, delta) for a cohort and its lineage, signed by the controller.

    Args:
        kind: `open`: any runs, chosen as one goes. `planned`: exactly the mechanisms of `forecast`.
        delta: None: min(1e-5, 1/(10 N)).
        forecast: open: the use that is expected, which fixes the order; planned: the declaration.
            On a cohort with an open budget, another open one changes it (a raise keeps the order); a
            planned one is added by basic composition.
        minimum_charge: open: below this remainder the cohort is locked (default: 1 % of epsilon).
        reason: why, in a sentence; advice: what the data protection officer advised.
        last_day: YYYY-MM-DD; afterwards no run is granted from it.

    Raises:
        ConfigError: a number out of range, or a forecast missing.
        LedgerRefused: delta too large for the cohort, not the controller's key, or mechanisms that do not
            fit into a planned budget.
    """
    terms = BudgetTerms(
        epsilon=epsilon,
        reason=reason,
        forecast=tuple(forecast),
        delta=delta,
        kind=kind,
        minimum_charge=minimum_charge,
        advice=advice,
        last_day=last_day,
    )
    body = budget_body(book, cohort, terms)
    with book.write() as (connection, state):
        book.add(connection, body, controller)
        return replace(state.budgets[state.seq if body.changes is None else body.changes])


def budget_body(book: Book, cohort: str, terms: BudgetTerms) -> SignedBudget:
    """What is signed of a budget. Raises as :func:`budget`, but for the key."""
    _check_wish(terms)
    epsilon, delta, forecast = terms.epsilon, terms.delta, terms.forecast
    with book.view() as (_, state):
        version = rules.cohort(state, cohort)
        budgets = [state.budgets[number] for number in state.cohorts[cohort].budgets]
    before = next((budget for budget in budgets if budget.kind == terms.kind == BudgetKind.OPEN), None)
    if delta is None:
        delta = before.delta if before else default_delta(version.public_size)
    gate.check_delta(delta, version.public_size, cohort, [b.delta for b in budgets if b is not before])
    if before is None and not forecast:
        raise ConfigError("a budget needs a forecast of its use (rate, noise, steps).")
    if any(mechanism.noise_multiplier == 0 for mechanism in forecast):
        raise ConfigError("a forecast without noise has no finite epsilon.")
    if terms.kind == BudgetKind.PLANNED:
        spent = _planned_terms(epsilon, delta, forecast)
    else:
        spent = _open_terms(epsilon, delta, forecast, before, terms.minimum_charge)
    return SignedBudget(
        cohort=cohort,
        unit=version.unit,
        adjacency=ADJACENCY,
        kind=terms.kind,
        epsilon=float(epsilon),
        delta=float(delta),
        order=float(spent.order),
        order_index=spent.order_index,
        orders_version=int(accounting.ORDERS_VERSION),
        units=spent.units,
        minimum_charge=float(spent.minimum_charge),
        minimum_units=spent.minimum_units,
        declared=[[m.sample_rate, m.noise_multiplier, m.steps, m.what] for m in forecast],
        prefixes=list(spent.prefixes),
        reason=terms.reason,
        advice=terms.advice,
        changes=None if before is None else before.id,
        last_day=terms.last_day,
    )


def _check_wish(terms: BudgetTerms) -> None:
    if terms.kind not in list(BudgetKind):
        raise ConfigError(f"a budget of the kind '{terms.kind}' does not exist: open or planned.")
    gate.check_epsilon(terms.epsilon)
    check_texts("a budget", reason=terms.reason, advice=terms.advice)
    check_day(terms.last_day)
    least, epsilon = terms.minimum_charge, terms.epsilon
    if least is not None and not (math.isfinite(least) and 0 <= least <= epsilon):
        raise ConfigError(f"minimum_charge={least} must lie between 0 and epsilon={epsilon:g}.")


def _planned_terms(epsilon: float, delta: float, declared: Sequence[Mechanism]) -> Terms:
    """Raises LedgerRefused where the declared mechanisms cost more than epsilon."""
    terms = accounting.planned_terms(epsilon, delta, declared)
    if not terms.prefixes[-1] <= epsilon:
        raise LedgerRefused(
            f"The declared mechanisms cost epsilon = {terms.prefixes[-1]:.4g} together (delta = {delta:g}, joint "
            f"PLD), more than the epsilon = {epsilon:g} to be granted.",
            remedy="Raise epsilon, or declare more noise or fewer steps.",
        )
    return terms


def _open_terms(
    epsilon: float, delta: float, forecast: Sequence[Mechanism], before: Budget | None, minimum_charge: float | None
) -> Terms:
    """Raises LedgerRefused where nothing could be spent. What changes a budget keeps its order."""
    if minimum_charge is None and before is not None:
        minimum_charge = before.minimum_charge
    order = None if before is None else before.order
    terms = accounting.open_terms(epsilon, delta, forecast, order=order, minimum_charge=minimum_charge)
    if terms.units <= 0:
        raise LedgerRefused(
            f"epsilon = {epsilon:g} at delta = {delta:g} leaves nothing to spend at RDP order {terms.order:g}.",
            remedy="Grant a larger epsilon, or a planned budget.",
        )
    return terms


def declare_weights(book: Book, sha256: str, *, source: str, licence: str, controller: Signer) -> None:
    """Declare starting weights public, by the SHA-256 of their file (64 hex digits)."""
    decide(book, weights_body(sha256, source=source, licence=licence), controller)


def weights_body(sha256: str, *, source: str, licence: str) -> DeclareWeights:
    """What is signed of public weights."""
    check_sha(sha256)
    check_texts("public weights", source=source, licence=licence)
    return DeclareWeights(sha256=sha256, source=source, licence=licence)


def decide(book: Book, body: Body, controller: Signer) -> Entry:
    """Write what one signer decides now; returns the entry."""
    with book.write() as (connection, _):
        return book.add(connection, body, controller)


def permit(
    book: Book,
    purpose: str,
    cohort: str,
    controller: Signer,
    *,
    reason: str,
    run: str | None = None,
    last_day: str | None = None,
) -> int:
    """The controller's leave for one evaluation or audit of a locked cohort, or for pictures; returns its number.

    Args:
        last_day: YYYY-MM-DD; afterwards it admits nothing.
    """
    body = permission_body(book, purpose, cohort, reason=reason, run=run, last_day=last_day)
    return decide(book, body, controller).seq


def permission_body(
    book: Book, purpose: str, cohort: str, *, reason: str, run: str | None = None, last_day: str | None = None
) -> Permission:
    """What is signed of a permission."""
    if purpose not in (Purpose.EVALUATE, Purpose.AUDIT, PICTURES):
        raise ConfigError(f"'{purpose}' cannot be permitted: evaluate, audit or pictures can.")
    if purpose == PICTURES and last_day is None:
        raise ConfigError("a permission for pictures has a last day.", remedy="Write last_day=2027-12-31.")
    check_texts("a permission", reason=reason)
    check_day(last_day)
    if run is not None:
        check_name("run", run)
    with book.view() as (_, state):
        rules.cohort(state, cohort)
    return Permission(purpose=purpose, cohort=cohort, run=run, reason=reason, last_day=last_day)


def revoke(book: Book, number: int, *, reason: str, controller: Signer) -> None:
    """Withdraw a permission (`number`: of its entry) that was not used yet."""
    decide(book, revocation_body(book, number, reason=reason), controller)


def revocation_body(book: Book, number: int, *, reason: str) -> Revoke:
    """What is signed of a permission's end. Raises LedgerRefused for one that is unknown, used or withdrawn."""
    check_texts("a revocation", reason=reason)
    with book.view() as (_, state):
        permit = state.permits.get(whole("permit", number, least=1))
        if permit is None or permit.used or permit.withdrawn:
            raise LedgerRefused(
                f"Entry {number} is no permission that is still open.",
                remedy="`dptrain ledger history` shows the permissions and what used them.",
            )
    return Revoke(permit=number, reason=reason)


def name_controller(
    book: Book, name: str, *, represented_by: str, contact: str | None = None, controller: Signer
) -> None:
    """Name the controller of the processing (GDPR Art. 4(7)): the legal person, and who represents it."""
    decide(book, controller_body(name, represented_by=represented_by, contact=contact), controller)


def controller_body(name: str, *, represented_by: str, contact: str | None = None) -> NameController:
    """What is signed of the controller's name."""
    check_name("controller", name)
    check_name("representative", represented_by)
    check_texts("a controller", contact=contact)
    return NameController(name=name, represented_by=represented_by, contact=contact)


def record_release(book: Book, run: str, terms: ReleaseTerms, controller: Signer) -> Entry:
    """Record the controller's decision that results of a run leave the house; returns the entry.

    Raises ConfigError for terms that say nothing or no hash, LedgerRefused for an unknown run or another key.
    """
    body = release_body(run, terms)
    with book.write() as (connection, state):
        rules.run(state, run)
        return book.add(connection, body, controller)


def release_body(run: str, terms: ReleaseTerms) -> Release:
    """What is signed of a release."""
    if not terms.items:
        raise ConfigError("a release names what is released.")
    check_texts(
        "a release",
        recipient=terms.recipient,
        purpose=terms.purpose,
        advice=terms.advice,
        without_audit=terms.without_audit,
        without_advice=terms.without_advice,
    )
    for item in (*terms.items, *terms.accepted):
        check_name("item", item)
    check_hashes("released file", terms.hashes)
    check_day(terms.last_day)
    if terms.assessment is not None:
        check_sha(terms.assessment)
    share = terms.accept_exposed
    if share is not None and not 0 <= share <= 1:
        raise ConfigError(f"accept_exposed={share} is no share between 0 and 1.")
    return Release(run=run, **vars(terms))


def lock(book: Book, cohort: str, *, reason: str) -> None:
    """Lock a cohort by hand. Anyone may; only the controller can unlock."""
    check_texts("a lock", reason=reason)
    with book.write() as (connection, state):
        rules.cohort(state, cohort)
        book.add(connection, Lock(cohort=cohort, reason=reason))


def unlock(book: Book, cohort: str, *, reason: str, controller: Signer) -> None:
    """Take back a lock by hand. An exhausted budget stays exhausted."""
    decide(book, unlock_body(book, cohort, reason=reason), controller)


def unlock_body(book: Book, cohort: str, *, reason: str) -> Unlock:
    """What is signed of a lock's end."""
    check_texts("an unlock", reason=reason)
    with book.view() as (_, state):
        rules.cohort(state, cohort)
    return Unlock(cohort=cohort, reason=reason)


def name_approver(
    book: Book, name: str, *, role: str, public: str | None, algorithm: str, reason: str, controller: Signer
) -> None:
    """Name somebody whose signature counts, a new key of theirs, or (`public` None) that it counts no more.

    Raises ConfigError for an unknown role or a key that is none, LedgerRefused where one signature is not enough.
    """
    decide(book, approver_body(name, role=role, public=public, algorithm=algorithm, reason=reason), controller)


def approver_body(name: str, *, role: str, public: str | None, algorithm: str, reason: str) -> NameApprover:
    """What is signed of an approver."""
    check_name("approver", name)
    check_texts("an approver", reason=reason)
    if role not in list(Role):
        raise ConfigError(f"'{role}' is no role of an approver: {', '.join(Role)}.")
    if public is not None:
        check_public(algorithm, public)
    return NameApprover(name=name, role=role, public=public, algorithm=algorithm, reason=reason)


def set_rule(
    book: Book, kind: str, *, signatures: int, roles: Mapping[str, int], reason: str, controller: Signer
) -> None:
    """Say how many must sign entries of a kind, and how many of which role.

    Raises ConfigError for an unknown kind or role, LedgerRefused where the rules in force ask for more signatures.
    """
    decide(book, rule_body(kind, signatures=signatures, roles=roles, reason=reason), controller)


def rule_body(kind: str, *, signatures: int, roles: Mapping[str, int], reason: str) -> SetRule:
    """What is signed of a rule."""
    check_texts("a rule", reason=reason)
    if kind not in RULED:
        raise ConfigError(f"there is no rule for '{kind}': for {', '.join(RULED)} there is.")
    for role, number in roles.items():
        if role not in list(Role):
            raise ConfigError(f"'{role}' is no role of an approver: {', '.join(Role)}.")
        whole(f"roles.{role}", number, least=1, most=100)
    whole("signatures", signatures, least=max(1, sum(roles.values())), most=100)
    return SetRule(kind=kind, signatures=signatures, roles=dict(roles), reason=reason)

"""Keys replaced: the site's, the controller's, the recovery code, the HMAC secret (docs/ledger.md, Keys).

The new keys are staged on disk before the entry that names them, and take their place after it.
"""

from __future__ import annotations

import os

from sqlalchemy.engine import Connection

from dptrain.errors import LedgerRefused
from dptrain.ledger import members
from dptrain.ledger.book import Book
from dptrain.ledger.keys import Controller, Keys
from dptrain.ledger.kinds import Rotate
from dptrain.ledger.state import State
from dptrain.vocabulary import RunStatus


def rotate_site_key(book: Book, controller: Controller) -> Keys:
    """Replace the site's key (`controller` may be the recovery key). Returns the new keys, saved."""
    new = book.keys.with_new_site_key()
    return _rotate(book, Rotate(what="site", public=new.site_public), new, controller)


def rotate_controller_key(book: Book, controller: Controller, passphrase: str) -> Keys:
    """Replace the controller's key by one sealed with a new passphrase (`controller` may be the recovery key)."""
    made, content = book.keys.new_controller(passphrase)
    new = book.keys.with_controller(made)
    return _rotate(book, Rotate(what="controller", public=made.public), new, controller, content)


def rotate_recovery_code(book: Book, controller: Controller) -> Keys:
    """Replace the recovery code; the new one is on the returned keys, this once."""
    new = book.keys.with_new_recovery()
    return _rotate(book, Rotate(what="recovery", public=new.recovery_public), new, controller)


def rotate_secret(book: Book, controller: Controller) -> Keys:
    """Put one more HMAC secret over every patient key and record hash. Register the cohorts again afterwards."""
    new, secret = book.keys.with_new_secret()
    with book.write() as (connection, state):
        _check_signer(state, controller)
        if any(run.status == RunStatus.OPEN for run in state.runs.values()):
            raise LedgerRefused("Runs are open; the secret cannot be changed under them.", remedy="Close them.")
        members.rewrap(connection, secret)
        patients, records = members.digests(connection, new.digest_key)
        body = Rotate(
            what="secret",
            secret_check=new.secret_check,
            nonce=os.urandom(16).hex(),
            patients_digest=f"{patients:064x}",
            records_digest=f"{records:064x}",
        )
        _enter(book, connection, state, body, new, controller)
    new.settle()
    return new


def _rotate(book: Book, body: Rotate, new: Keys, controller: Controller, sealed_key: bytes | None = None) -> Keys:
    with book.write(any_site_key=True) as (connection, state):
        _check_signer(state, controller)
        _enter(book, connection, state, body, new, controller, sealed_key)
    new.settle()
    return new


def _check_signer(state: State, controller: Controller) -> None:
    if controller.public not in (state.controller, state.recovery):
        raise LedgerRefused(
            "This key is neither the controller's nor the recovery key of this ledger.",
            remedy="Use the controller's key or the recovery code.",
        )


def _enter(
    book: Book,
    connection: Connection,
    state: State,
    body: Rotate,
    new: Keys,
    controller: Controller,
    sealed_key: bytes | None = None,
) -> None:
    """Stage the new keys, and let the ledger name them; nothing is left staged where that fails."""
    new.stage(sealed_key)
    old, book.keys = book.keys, new
    try:
        book.add(connection, body, controller)
        book.write_snapshot(connection, state)
    except BaseException:
        book.keys = old
        new.unstage()
        raise


def names(book: Book, keys: Keys) -> bool:
    """Whether these keys are, all of them, those that the ledger names."""
    with book.view() as (_, state):
        return (state.site_keys[-1], state.controller, state.recovery, state.secret_check) == (
            keys.site_public,
            keys.controller_public,
            keys.recovery_public,
            keys.secret_check,
        )

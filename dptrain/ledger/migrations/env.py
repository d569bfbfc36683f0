"""Alembic's entry: it always runs on the connection (and in the transaction) that the store hands over."""

from alembic import context

from dptrain.ledger.store import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=False,
    transactional_ddl=False,
)
context.run_migrations()

"""The first schema: entries, head, snapshot, patients, records."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "entries",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("time", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("prev", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.Column("countersignature", sa.LargeBinary, nullable=True),
    )
    op.create_table(
        "head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("site", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "snapshot",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "patients",
        sa.Column("key", sa.LargeBinary(32), primary_key=True),
        sa.Column("class", sa.Integer, nullable=False),
        sa.Column("unit", sa.Integer, nullable=True),
        sqlite_with_rowid=False,
    )
    op.create_index("patients_class", "patients", ["class"])
    linked = sa.text("unit IS NOT NULL")
    op.create_index("patients_unit", "patients", ["unit"], sqlite_where=linked, postgresql_where=linked)
    op.create_table(
        "records",
        sa.Column("hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("patient", sa.LargeBinary(32), nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """A ledger is never taken back."""
    raise NotImplementedError("a ledger's schema is never taken back: restore a backup instead")

"""what has to be dropped from the cache, written with what makes it wrong

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-25
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "cache_invalidation",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("is_pattern", sa.Boolean(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cache_invalidation"),
    )
    op.create_index("ix_cache_invalidation_due_at", "cache_invalidation", ["due_at"])


def downgrade() -> None:
    op.drop_table("cache_invalidation")

"""initial schema

Revision ID: 0001
Revises:
Create Date: 2026-11-24
"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def timestamps() -> tuple[sa.Column[datetime], ...]:
    return (
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True)),
    )


def upgrade() -> None:
    op.create_table(
        "tier",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(50), nullable=False),
        *timestamps(),
        sa.PrimaryKeyConstraint("id", name="pk_tier"),
        sa.UniqueConstraint("name", name="uq_tier_name"),
    )
    op.create_table(
        "rate_limit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tier_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(50), nullable=False),
        sa.Column("path", sa.String(255), nullable=False),
        sa.Column("limit", sa.Integer(), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        *timestamps(),
        sa.PrimaryKeyConstraint("id", name="pk_rate_limit"),
        sa.ForeignKeyConstraint(["tier_id"], ["tier.id"], name="fk_rate_limit_tier_id_tier", ondelete="CASCADE"),
        sa.UniqueConstraint("tier_id", "path", name="uq_rate_limit_tier_id_path"),
        sa.CheckConstraint('"limit" > 0', name=op.f("ck_rate_limit_limit_positive")),
        sa.CheckConstraint("period > 0", name=op.f("ck_rate_limit_period_positive")),
    )
    op.create_table(
        "user",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.Uuid(), server_default=sa.func.gen_random_uuid(), nullable=False),
        sa.Column("name", sa.String(30), nullable=False),
        sa.Column("username", sa.String(20), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("hashed_password", sa.String(), nullable=False),
        sa.Column("profile_image_url", sa.String(500)),
        sa.Column("tier_id", sa.Integer()),
        sa.Column("is_superuser", sa.Boolean(), server_default=sa.false(), nullable=False),
        *timestamps(),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.Column("is_deleted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_user"),
        sa.UniqueConstraint("uuid", name="uq_user_uuid"),
        sa.UniqueConstraint("username", name="uq_user_username"),
        sa.ForeignKeyConstraint(["tier_id"], ["tier.id"], name="fk_user_tier_id_tier", ondelete="RESTRICT"),
        sa.CheckConstraint("NOT is_deleted OR tier_id IS NULL", name=op.f("ck_user_deleted_has_no_tier")),
    )
    op.create_index("uq_user_email", "user", [sa.text("lower(email)")], unique=True)
    op.create_index("ix_user_tier_id", "user", ["tier_id"])
    op.create_table(
        "token_blacklist",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_token_blacklist"),
        sa.UniqueConstraint("token", name="uq_token_blacklist_token"),
    )
    op.create_index("ix_token_blacklist_expires_at", "token_blacklist", ["expires_at"])


def downgrade() -> None:
    for table in ("token_blacklist", "user", "rate_limit", "tier"):
        op.drop_table(table)

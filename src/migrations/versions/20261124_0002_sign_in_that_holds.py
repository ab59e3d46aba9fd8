"""sign-in that holds: logins, throttling, tokens in mails, security events

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-24
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

Moment = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("user", sa.Column("email_verified_at", Moment))
    op.add_column("user", sa.Column("password_changed_at", Moment))
    op.create_table(
        "login_session",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("rotated_at", Moment, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("last_used_at", Moment, nullable=False),
        sa.Column("expires_at", Moment, nullable=False),
        sa.Column("revoked_at", Moment),
        sa.Column("address", sa.String(45)),
        sa.Column("user_agent", sa.String(255)),
        sa.PrimaryKeyConstraint("id", name="pk_login_session"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_login_session_user_id_user", ondelete="CASCADE"),
    )
    op.create_index("ix_login_session_user_id", "login_session", ["user_id"])
    op.create_index("ix_login_session_expires_at", "login_session", ["expires_at"])
    op.create_table(
        "login_throttle",
        sa.Column("key", sa.String(150), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_failure_at", Moment, nullable=False),
        sa.Column("locked_until", Moment),
        sa.PrimaryKeyConstraint("key", name="pk_login_throttle"),
    )
    op.create_index("ix_login_throttle_last_failure_at", "login_throttle", ["last_failure_at"])
    op.create_table(
        "mail_token",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("purpose", sa.String(20), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("expires_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_mail_token"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_mail_token_user_id_user", ondelete="CASCADE"),
        sa.UniqueConstraint("token_hash", name="uq_mail_token_token_hash"),
    )
    op.create_index("ix_mail_token_user_id", "mail_token", ["user_id"])
    op.create_index("ix_mail_token_expires_at", "mail_token", ["expires_at"])
    op.create_table(
        "security_event",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("user_id", sa.Integer()),
        sa.Column("actor_id", sa.Integer()),
        sa.Column("session_id", sa.Uuid()),
        sa.Column("address", sa.String(45)),
        sa.Column("user_agent", sa.String(255)),
        sa.Column("request_id", sa.String(64)),
        sa.Column("details", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_security_event"),
        sa.ForeignKeyConstraint(["user_id"], ["user.id"], name="fk_security_event_user_id_user", ondelete="SET NULL"),
    )
    op.create_index("ix_security_event_created_at", "security_event", ["created_at"])
    op.create_index("ix_security_event_user_id", "security_event", ["user_id"])


def downgrade() -> None:
    for table in ("security_event", "mail_token", "login_throttle", "login_session"):
        op.drop_table(table)
    op.drop_column("user", "password_changed_at")
    op.drop_column("user", "email_verified_at")

"""the operator's console: its logins, what was done in it, and passwords for a while

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-25
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None

_ENDED = sa.text("finished_at IS NOT NULL")
_MORE = ["run_after", "started_at"]


def upgrade() -> None:
    # The indexes first: they take a while where there are many jobs, and requests wait for whoever holds `user`.
    # For the functions that there are, and the newest jobs of one.
    op.create_index("ix_job_function_created_at", "job", ["function", "created_at"])
    # With what statistics are made of.
    op.drop_index("ix_job_ended", table_name="job")
    op.create_index("ix_job_ended", "job", ["state", "finished_at"], postgresql_where=_ENDED, postgresql_include=_MORE)
    op.create_table(
        "console_action",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor_id", sa.Integer(), nullable=False),
        sa.Column("actor", sa.String(length=20), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("target", sa.String(length=200), nullable=False),
        sa.Column("before", postgresql.JSONB(), nullable=False),
        sa.Column("after", postgresql.JSONB(), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=True),
        sa.Column("user_agent", sa.String(length=255), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_console_action")),
    )
    for column in ("created_at", "actor_id", "action", "target"):
        op.create_index(op.f(f"ix_console_action_{column}"), "console_action", [column])
    op.add_column(
        "login_session", sa.Column("kind", sa.String(length=10), server_default=sa.text("'api'"), nullable=False)
    )
    op.add_column("user", sa.Column("password_expires_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_index("ix_job_ended", table_name="job")
    op.create_index("ix_job_ended", "job", ["state", "finished_at"], postgresql_where=_ENDED)
    op.drop_index("ix_job_function_created_at", table_name="job")
    op.drop_table("console_action")
    op.drop_column("user", "password_expires_at")
    # A login of the console would become one of the API.
    op.execute("DELETE FROM login_session WHERE kind <> 'api'")
    op.drop_column("login_session", "kind")

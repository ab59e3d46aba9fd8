<%!
    import textwrap

    def docstring(message):
        lines = textwrap.fill(" ".join(message.split()), 117)
        return lines.replace("\\", "\\\\").replace('"', '\\"')

    def annotation(value):
        return "str | None" if value is None or isinstance(value, str) else f"{type(value).__name__}[str{', ...' * isinstance(value, tuple)}]"

    def body(operations):
        lines = [line for line in (operations or "").splitlines() if not line.strip().startswith("# ###")]
        return "\n".join(lines).strip() or "pass"
%>"""${docstring(message or "")}

Revision ID: ${up_revision}
Revises: ${", ".join([down_revision] if isinstance(down_revision, str) else down_revision or ["nothing"])}
Create Date: ${create_date.date()}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: str = ${repr(up_revision)}
down_revision: ${annotation(down_revision)} = ${repr(down_revision)}
branch_labels: ${annotation(branch_labels)} = ${repr(branch_labels)}
depends_on: ${annotation(depends_on)} = ${repr(depends_on)}


def upgrade() -> None:
    ${body(upgrades)}


def downgrade() -> None:
    ${body(downgrades)}

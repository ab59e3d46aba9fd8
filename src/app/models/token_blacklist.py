"""Access tokens that were ended before their time."""

from datetime import datetime

from sqlmodel import Field, SQLModel


class TokenBlacklist(SQLModel, table=True):
    """The table. `token` is a token's `jti`."""

    __tablename__ = "token_blacklist"

    id: int = Field(default=None, primary_key=True)
    token: str = Field(max_length=64, unique=True)
    expires_at: datetime = Field(index=True, description="From then on the token is refused for its age alone.")

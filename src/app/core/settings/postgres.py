"""The database."""

from typing import Literal

from pydantic import Field, SecretStr, field_validator
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.core.settings.base import Port, PositiveInt, SettingsGroup


class PostgresSettings(SettingsGroup):
    """Switches the database. `POSTGRES_URL` wins over the parts."""

    POSTGRES_USER: str = "postgres"
    POSTGRES_PASSWORD: SecretStr = SecretStr("postgres")
    POSTGRES_SERVER: str = "localhost"
    POSTGRES_PORT: Port = 5432
    POSTGRES_DB: str = "postgres"
    POSTGRES_URL: SecretStr | None = Field(
        None, description="of the form postgresql://user:password@host:port/database"
    )
    POSTGRES_READ_URL: SecretStr | None = Field(
        None, description="a replica's address, of the form postgresql://user:password@host:port/database"
    )
    POSTGRES_POOL_MODE: Literal["session", "transaction"] = Field(
        "session", description="one of session, transaction: what PgBouncer's pool_mode is, if there is one in between"
    )
    POSTGRES_POOL_SIZE: PositiveInt = Field(10, description="the number of connections a process may hold, 1 or more")

    @field_validator("POSTGRES_URL", "POSTGRES_READ_URL")
    @classmethod
    def _is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                backend = make_url(value.get_secret_value()).get_backend_name()
            except ArgumentError:
                raise ValueError("not a URL") from None
            if backend not in {"postgresql", "postgres"}:
                raise ValueError("not PostgreSQL")
        return value

    @property
    def postgres_url(self) -> URL:
        """The address for SQLAlchemy with asyncpg."""
        if self.POSTGRES_URL is not None:
            return _for_asyncpg(self.POSTGRES_URL)
        return URL.create(
            "postgresql+asyncpg",
            username=self.POSTGRES_USER,
            password=self.POSTGRES_PASSWORD.get_secret_value(),
            host=self.POSTGRES_SERVER,
            port=self.POSTGRES_PORT,
            database=self.POSTGRES_DB,
        )

    @property
    def postgres_read_url(self) -> URL | None:
        """The replica's, if there is one."""
        return None if self.POSTGRES_READ_URL is None else _for_asyncpg(self.POSTGRES_READ_URL)


def _for_asyncpg(text: SecretStr) -> URL:
    """asyncpg's name for libpq's `sslmode` is `ssl`."""
    url = make_url(text.get_secret_value()).set(drivername="postgresql+asyncpg")
    sslmode = url.query.get("sslmode")
    return url.difference_update_query(["sslmode"]).update_query_dict({"ssl": sslmode}) if sslmode else url

"""The database."""

from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from sqlalchemy import URL

from app.core.db.address import DRIVER, PostgresAddress, parse_address
from app.core.db.address_parameters import AddressError
from app.core.db.tls import TLSFileError
from app.core.settings.base import Port, PositiveInt, RefusedValueError, SettingsGroup


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
    POSTGRES_STATEMENT_TIMEOUT_SECONDS: float = Field(
        5.0, gt=0, le=86_400, description="how many seconds one statement of a request may take, more than 0"
    )
    POSTGRES_POOL_SIZE: PositiveInt = Field(10, description="the number of connections a process may hold, 1 or more")

    @field_validator("POSTGRES_URL", "POSTGRES_READ_URL")
    @classmethod
    def _is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parse_address(value.get_secret_value()).connect_arguments()
            except (AddressError, TLSFileError) as error:
                raise RefusedValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _take_the_pool_mode_of_the_address(self) -> Self:
        for name, url in (("POSTGRES_URL", self.POSTGRES_URL), ("POSTGRES_READ_URL", self.POSTGRES_READ_URL)):
            if url is not None and parse_address(url.get_secret_value()).is_pgbouncer:
                if "POSTGRES_POOL_MODE" in self.model_fields_set and self.POSTGRES_POOL_MODE != "transaction":
                    raise ValueError(f"POSTGRES_POOL_MODE must be transaction where {name} has pgbouncer=true.")
                self.POSTGRES_POOL_MODE = "transaction"
        return self

    @property
    def postgres_address(self) -> PostgresAddress:
        """The primary, for SQLAlchemy with asyncpg."""
        if self.POSTGRES_URL is not None:
            return parse_address(self.POSTGRES_URL.get_secret_value())
        return PostgresAddress(
            URL.create(
                DRIVER,
                username=self.POSTGRES_USER,
                password=self.POSTGRES_PASSWORD.get_secret_value(),
                host=self.POSTGRES_SERVER,
                port=self.POSTGRES_PORT,
                database=self.POSTGRES_DB,
            )
        )

    @property
    def postgres_read_address(self) -> PostgresAddress | None:
        """The replica, if there is one."""
        url = self.POSTGRES_READ_URL
        return None if url is None else parse_address(url.get_secret_value())

    @property
    def postgres_url(self) -> URL:
        """The URL of the primary, for SQLAlchemy with asyncpg, without what a URL of SQLAlchemy cannot say."""
        return self.postgres_address.url

    @property
    def postgres_read_url(self) -> URL | None:
        """The URL of the replica, if there is one."""
        return None if (address := self.postgres_read_address) is None else address.url

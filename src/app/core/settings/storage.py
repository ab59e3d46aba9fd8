"""Where uploaded files are stored, and under which address they are public."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from app.core.settings.base import PositiveInt, SettingsGroup

_PROJECT: Final = Path(__file__).resolve().parents[4]
_HTTP_URL: Final = r"^https?://[A-Za-z0-9.:\[\]-]{1,253}(/[A-Za-z0-9._~%!$&'()*+,;=:@/-]{0,100})?$"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

HttpUrl = Annotated[str, Field(pattern=_HTTP_URL)]


class StorageSettings(SettingsGroup):
    """Switches uploads: a folder in `local`; elsewhere once `STORAGE_URL` names a folder or a bucket."""

    STORAGE_URL: str | None = Field(
        None, description="file:// and the absolute path of a folder, or s3://bucket or s3://bucket/prefix"
    )
    STORAGE_S3_ENDPOINT: HttpUrl | None = Field(
        None, description="the http(s) URL of a server that speaks S3, where it is not Amazon's"
    )
    STORAGE_S3_REGION: str = Field("us-east-1", min_length=1, description="the name of a region")
    STORAGE_S3_ACCESS_KEY_ID: str | None = None
    STORAGE_S3_SECRET_ACCESS_KEY: SecretStr | None = None
    MEDIA_URL: HttpUrl = Field(
        default_factory=lambda: f"http://localhost:{os.environ.get('PORT', '8000')}/api/v1/media",  # of `make run`
        description="the http(s) URL, without a query, to which a stored file's key is added",
    )
    MAX_CONCURRENT_UPLOADS: PositiveInt = Field(
        20, description="how many uploads a process receives at the same time, a positive number"
    )

    @field_validator("STORAGE_URL")
    @classmethod
    def _is_a_place(cls, value: str | None) -> Any:
        if value is None:
            return None
        parts = urlsplit(value)
        is_folder = parts.scheme == "file" and not parts.netloc and Path(unquote(parts.path)).is_absolute()
        is_bucket = parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc)
        if not (is_folder or is_bucket) or parts.query or parts.fragment:
            raise ValueError("not a folder and not a bucket")
        return value

    @field_validator("MEDIA_URL")
    @classmethod
    def _without_a_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @model_validator(mode="after")
    def _name_where_a_bucket_is_public(self) -> Self:
        if self.storage_bucket is not None and "MEDIA_URL" not in self.model_fields_set:
            raise ValueError("MEDIA_URL must be set where STORAGE_URL is a bucket: the application serves no bucket.")
        if (self.STORAGE_S3_ACCESS_KEY_ID is None) is not (self.STORAGE_S3_SECRET_ACCESS_KEY is None):
            raise ValueError("STORAGE_S3_ACCESS_KEY_ID and STORAGE_S3_SECRET_ACCESS_KEY must be set together.")
        return self

    @property
    def storage_folder(self) -> Path:
        """The folder, where files are stored in one; without `STORAGE_URL` that of `make run`."""
        if self.STORAGE_URL is None:
            return _PROJECT / ".data" / "uploads"
        return Path(unquote(urlsplit(self.STORAGE_URL).path))

    @property
    def storage_bucket(self) -> tuple[str, str] | None:
        """The bucket, and the prefix of keys in it; None where files are stored in a folder."""
        if self.STORAGE_URL is None or not self.STORAGE_URL.startswith("s3:"):
            return None
        parts = urlsplit(self.STORAGE_URL)
        return parts.netloc, unquote(parts.path).strip("/")

"""What operators see."""

from importlib.util import find_spec
from typing import Self

from pydantic import Field, SecretStr, model_validator

from app.core.settings.base import Port, SettingsGroup


class MetricsSettings(SettingsGroup):
    """Switches `/metrics`: in `local` for everybody, elsewhere for whoever has the token, once one is set."""

    METRICS_TOKEN: SecretStr | None = Field(
        None,
        min_length=16,
        description="at least 16 random characters (`openssl rand -hex 16` makes 32), which Prometheus sends as a"
        " bearer token",
    )
    WORKER_METRICS_PORT: Port | None = Field(None, description="a TCP port, 1 to 65535, where a worker has its metrics")
    WORKER_METRICS_HOST: str = Field("127.0.0.1", description="an address of this machine; they are open to all there")


class TracingSettings(SettingsGroup):
    """Switches traces, once there is an address to export them to. The names are OpenTelemetry's own."""

    OTEL_EXPORTER_OTLP_ENDPOINT: str | None = Field(
        None,
        pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$",
        description="the address of a collector that takes OTLP over HTTP, such as http://collector:4318",
    )
    OTEL_EXPORTER_OTLP_HEADERS: SecretStr | None = Field(None, description="name=value, with commas between")
    OTEL_SERVICE_NAME: str = Field("slipway", min_length=1, description="what the traces call this service")
    OTEL_TRACES_SAMPLER_ARG: float = Field(1.0, ge=0, le=1, description="the share of traces to export, 0 to 1")

    @model_validator(mode="after")
    def _refuse_what_is_not_installed(self) -> Self:
        if self.OTEL_EXPORTER_OTLP_ENDPOINT is not None and not _has_exporter():
            raise ValueError(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, and tracing is not installed: "
                "pip install --require-hashes -r requirements-tracing.txt."
            )
        return self


def _has_exporter() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ImportError:
        return False

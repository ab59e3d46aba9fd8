"""What operators see."""

from pydantic import Field, SecretStr

from app.core.settings.base import Port, SettingsGroup


class MetricsSettings(SettingsGroup):
    """Switches `/metrics`: in `local` for everybody, elsewhere for whoever has the token, once one is set."""

    METRICS_TOKEN: SecretStr | None = Field(
        None, min_length=16, description="at least 16 random characters, which Prometheus sends as a bearer token"
    )
    WORKER_METRICS_PORT: Port | None = Field(None, description="a TCP port, 1 to 65535, where a worker has its metrics")
    WORKER_METRICS_HOST: str = Field("127.0.0.1", description="an address of this machine; they are open to all there")

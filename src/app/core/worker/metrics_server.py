"""What a worker counts, for Prometheus: on a port of its own, since a worker answers nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import start_http_server

from app.core.config import MetricsSettings, SettingsGroup
from app.core.metrics.processes import registry

log = structlog.stdlib.get_logger("slipway.worker")


@contextmanager
def metrics_served(settings: SettingsGroup) -> Iterator[None]:
    """Serves them meanwhile, where `WORKER_METRICS_PORT` says so. A port that is taken is no reason not to work."""
    if not isinstance(settings, MetricsSettings) or settings.WORKER_METRICS_PORT is None:
        yield
        return
    try:
        server, thread = start_http_server(settings.WORKER_METRICS_PORT, settings.WORKER_METRICS_HOST, registry())
    except OSError as error:
        log.warning("worker's metrics are not served", port=settings.WORKER_METRICS_PORT, why=str(error))
        yield
        return
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""OpenTelemetry's SDK, as it is used here. Imported while tracing is on only."""

from typing import Final
from urllib.parse import unquote

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from app.core.config import TracingSettings
from app.core.tracing.spans import wanted_trace_id

_TRACES: Final = "/v1/traces"


class _Ids(RandomIdGenerator):
    """Random, but for a trace whose id was decided before."""

    def generate_trace_id(self) -> int:
        """The id of a new trace."""
        return wanted_trace_id.get() or super().generate_trace_id()


def provider_for(settings: TracingSettings) -> TracerProvider:
    """What makes spans and exports them. Further standard `OTEL_` variables, such as timeouts, are the SDK's to read.

    It is not made global: whoever else uses OpenTelemetry in this process has their own.
    """
    resource = {"service.name": settings.OTEL_SERVICE_NAME}
    if version := getattr(settings, "APP_VERSION", None):
        resource["service.version"] = version
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.OTEL_TRACES_SAMPLER_ARG)),
        resource=Resource.create(resource),
        shutdown_on_exit=False,
        id_generator=_Ids(),
    )
    exporter = OTLPSpanExporter(
        endpoint=f"{str(settings.OTEL_EXPORTER_OTLP_ENDPOINT).rstrip('/')}{_TRACES}", headers=_headers(settings)
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _headers(settings: TracingSettings) -> dict[str, str]:
    given = settings.OTEL_EXPORTER_OTLP_HEADERS
    if given is None:
        return {}
    pairs = (pair.partition("=") for pair in given.get_secret_value().split(",") if pair.strip())
    return {name.strip().lower(): unquote(value.strip()) for name, _, value in pairs}

"""Logging: one configuration for our own lines, uvicorn's, ARQ's and everybody else's, called by entry points."""

import logging
import logging.config
import re
from pathlib import Path
from typing import Any

import structlog

from app.core.config import EnvironmentOption

LOG_FILE = Path(__file__).parents[1] / "logs" / "app.log"


def configure_logging(environment: EnvironmentOption = EnvironmentOption.PRODUCTION) -> None:
    """Lines for people on standard output and in `logs/app.log` in `local`; JSON on standard output elsewhere.

    Elsewhere there is no file: several processes cannot rotate one, and containers collect standard output.
    """
    local = environment is EnvironmentOption.LOCAL
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _without_colours,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if local else "iso", utc=not local),
        # Tracebacks as text: the structured form lists local variables, and those hold secrets.
        structlog.processors.format_exc_info,
        _without_row_values,
    ]
    handlers: dict[str, dict[str, Any]] = {
        "console": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "lines"}
    }
    if local:
        LOG_FILE.parent.mkdir(exist_ok=True)
        handlers["file"] = {
            "class": "logging.handlers.RotatingFileHandler",
            "filename": str(LOG_FILE),
            "maxBytes": 10_000_000,
            "backupCount": 3,
            "delay": True,
            "encoding": "utf-8",
            "formatter": "lines",
        }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "lines": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": shared,
                    "processors": _rendering(local),
                }
            },
            "handlers": handlers,
            "root": {"level": "INFO", "handlers": list(handlers)},
            "loggers": {
                # Ours has the request id; uvicorn's would say everything a second time.
                "uvicorn.access": {"level": "WARNING", "handlers": [], "propagate": True},
                "uvicorn": {"handlers": [], "propagate": True},
                "uvicorn.error": {"handlers": [], "propagate": True},
                "arq": {"handlers": [], "propagate": True},
                # It reports every schema comparison and version lookup.
                "alembic": {"level": "WARNING"},
            },
        }
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _without_colours(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    event.pop("color_message", None)  # uvicorn says everything twice, once for terminals
    return event


# PostgreSQL's "DETAIL:  Failing row contains (...)": e-mail addresses, hashes. Ends where SQLAlchemy or Python goes on.
_DETAIL = re.compile(r"\nDETAIL:.*?(?=\n\[SQL|\n\n(?:The above|During)|\Z)", re.DOTALL)


def _without_row_values(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    return {name: _DETAIL.sub("", text) if isinstance(text, str) else text for name, text in event.items()}


def _rendering(local: bool) -> list[Any]:
    without_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if local:
        plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
        return [without_meta, plain]
    return [without_meta, structlog.processors.JSONRenderer()]

"""The documents' Python, run against the real app."""

from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from app.core.config import Settings
from tests.docs import (
    database_surroundings,
    event_surroundings,
    extension_surroundings,
    http_surroundings,
    job_surroundings,
    surroundings,
)
from tests.docs.blocks import Block, all_blocks
from tests.docs.surroundings import Code

pytestmark = pytest.mark.anyio

# By the name that a block's comment says after `python`.
SURROUNDINGS: Final[dict[str, Callable[[Code], Awaitable[None]]]] = {
    "post-routes": surroundings.post_routes,
    "post-change": surroundings.post_change,
    "post-client-cache": surroundings.post_client_cache,
    "heavy-route": surroundings.heavy_route,
    "own-routes": surroundings.own_routes,
    "own-app": surroundings.own_app,
    "old-handler": surroundings.old_handler,
    "settings-group": surroundings.settings_group,
    "own-settings": surroundings.own_settings,
    "log-lines": surroundings.log_lines,
    "own-handler": surroundings.own_handler,
    "table": surroundings.table,
    "model": surroundings.model,
    "test": surroundings.run_test,
    "job-function": job_surroundings.job_function,
    "job-list": job_surroundings.job_list,
    "enqueueing": job_surroundings.enqueueing,
    "cron-zone": job_surroundings.cron_zone,
    "known-workers": job_surroundings.known_workers,
    "in-a-job": job_surroundings.in_a_job,
    "job-test": job_surroundings.job_test,
    "own-error-handlers": extension_surroundings.own_error_handlers,
    "own-middleware": extension_surroundings.own_middleware,
    "caught-error": database_surroundings.caught_error,
    "relations": database_surroundings.relations,
    "statement-timeout": database_surroundings.statement_timeout,
    "subscriptions": event_surroundings.subscriptions,
    "own-events": event_surroundings.own_events,
    "mounted-application": extension_surroundings.mounted_application,
    "web-socket": extension_surroundings.web_socket,
    "request-sizes": http_surroundings.request_sizes,
    "uploads": http_surroundings.uploads,
}


@pytest.mark.parametrize("block", all_blocks("python"), ids=lambda block: block.place)
async def test_python(settings: Settings, block: Block) -> None:
    await SURROUNDINGS[block.rest](Code(block, settings))

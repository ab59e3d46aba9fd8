"""Whether what the app talks to is well, in Prometheus' words. Looked at when somebody asks for the metrics.

Not a gauge: of several processes behind one port the one that answers has just looked, and what another one saw at an
earlier scrape must not outlive that.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app.core.metrics.processes import add_counted_elsewhere
from app.core.readiness import Dependency, states_of

# Less than what an answer waits for (metrics.COUNT_SECONDS): what hangs is told to be down, not as it was before.
LOOK_SECONDS: Final = 1.5


class _Seen(Collector):
    """The last look."""

    def __init__(self) -> None:
        self.up: dict[tuple[str, str], bool] = {}

    def describe(self) -> Iterable[Metric]:
        """What there will be."""
        return (self._family(),)

    def collect(self) -> Iterable[Metric]:
        """A sample for each dependency of this app."""
        family = self._family()
        for labels, up in self.up.items():
            family.add_metric(labels, up)
        return (family,)

    @staticmethod
    def _family() -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "slipway_dependency_up",
            "1 while a dependency is well, as /ready sees it; without a required one the server is not ready.",
            labels=["dependency", "required"],
        )


_seen = _Seen()
add_counted_elsewhere(_seen)


async def look_at(dependencies: Sequence[Dependency]) -> None:
    """Brings the metric up to date. Takes LOOK_SECONDS at most."""
    states = await states_of(dependencies, LOOK_SECONDS)
    _seen.up = {
        (dependency.name, str(dependency.required).lower()): states[dependency.name] == "up"
        for dependency in dependencies
    }

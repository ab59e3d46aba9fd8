"""What several processes behind one port have counted, as one.

Each writes what it counts into files of the folder `PROMETHEUS_MULTIPROC_DIR`, which has to be there, and empty, before
the first of them starts; src/gunicorn.conf.py sees to it. It is for the processes of one machine or container: whoever
shares it has to be able to see whether the others live.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
_ENDED: Final = "ended"  # stands where a file's name has the process

_counted_elsewhere: list[Collector] = []


def add_counted_elsewhere(collector: Collector) -> None:
    """Adds metrics that are the same in every process, such as what is counted in the database."""
    REGISTRY.register(collector)
    _counted_elsewhere.append(collector)


@cache
def registry() -> CollectorRegistry:
    """What all processes have counted; of a single one also what Python and the system say of it."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return REGISTRY
    together = CollectorRegistry()
    together.register(_Together(Path(folder)))
    for collector in _counted_elsewhere:
        together.register(collector)
    return together


class _Together(Collector):
    """The sum of the files. Those of processes that have ended become one: workers may be replaced every minute."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> Iterable[Metric]:
        """Nothing: it is not known what others count."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All metrics of all processes."""
        with _locked(self._folder):
            _merge_ended(self._folder)
            files = [str(file) for file in self._folder.glob("*.db")]
            yield from list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]


def _merge_ended(folder: Path) -> None:
    """Adds the counts of ended processes to those of all that have ended before. What only the living have is gone."""
    for file in folder.glob("*.db"):
        kind, process = file.stem.partition("_")[0], file.stem.rpartition("_")[2]
        if not process.isdigit() or _lives(int(process)):
            continue
        if kind in {"counter", "histogram"}:
            _add(file, folder / f"{kind}_{_ENDED}.db")
        if kind in {"counter", "histogram"} or "_live" in file.stem:
            file.unlink(missing_ok=True)  # gunicorn, told to, removes some as well.


def _add(source: Path, target: Path) -> None:
    # Written to a file of another name, and moved there: a process that is killed meanwhile leaves no half of one.
    scratch = target.with_suffix(".new")
    if scratch.exists():
        scratch.unlink()
    if target.exists():
        scratch.write_bytes(target.read_bytes())
    sums = MmapedDict(str(scratch))  # type: ignore[no-untyped-call]
    for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(source)):  # type: ignore[no-untyped-call]
        sums.write_value(key, sums.read_value(key)[0] + value, timestamp)  # type: ignore[no-untyped-call]
    sums.close()  # type: ignore[no-untyped-call]
    scratch.replace(target)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: to see a file and its sum, or neither, would be a jump in what is counted."""
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

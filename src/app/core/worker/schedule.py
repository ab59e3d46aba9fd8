"""When a cron job is due, as moments in UTC, by the rules of its time zone.

Clock changes are treated as Vixie cron does: a job with fixed hours runs once for each of its wall-clock times, one
whose hour is open runs by the time that passes.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, Final

from arq.cron import CronJob
from arq.typing import WEEKDAYS

DAY: Final = timedelta(days=1)
SECOND: Final = timedelta(seconds=1)
INSTANT: Final = timedelta(microseconds=1)
MAX_YEARS: Final = 41  # between two 29ths of February that are the same day of the week

_RANGES: Final = {
    "month": range(1, 13),
    "day": range(1, 32),
    "weekday": range(7),
    "hour": range(24),
    "minute": range(60),
    "second": range(60),
    "microsecond": range(1_000_000),
}


class Schedule:
    """The ticks of a cron job.

    Local times are naive here, moments are in UTC.
    """

    def __init__(self, job: CronJob, zone: tzinfo | None) -> None:
        """
        Args:
            job: with ARQ's fields.
            zone: whose wall clock is meant; None for that of the system.

        Raises: ValueError when a field is out of its range, or when no day matches.
        """
        self._job, self._zone = job, zone
        self._months, self._days, self._weekdays = (set(self._values(name)) for name in ("month", "day", "weekday"))
        self._hours, self._minutes, self._seconds = (self._values(name) for name in ("hour", "minute", "second"))
        (self._microsecond,) = self._values("microsecond")
        self._has_fixed_hours = len(self._hours) < 24
        self._first_local(datetime(2000, 1, 1))  # noqa: DTZ001 -- a local time

    def next_after(self, moment: datetime) -> datetime:
        """The first tick after this moment, in UTC."""
        moment = moment.astimezone(UTC)
        started = moment
        change = self._change_between(moment - DAY, moment)
        if change is not None and moment < change + SECOND:
            started = change - INSTANT  # The tick that makes up for a gap can be due within this second.
        while (tick := self._search(started)) <= moment:
            started = tick
        return tick

    def last_within(self, period: timedelta, moment: datetime) -> datetime | None:
        """The last tick of a period that ends at this moment, in UTC."""
        last, tick = None, self.next_after(moment - period)
        while tick <= moment:
            last, tick = tick, self.next_after(tick)
        return last

    def _search(self, moment: datetime) -> datetime:
        offset = self._offset_at(moment)
        floor = _naive(moment) + offset + INSTANT
        change = self._change_between(moment - DAY, moment)
        if change is not None and self._has_fixed_hours:
            floor = max(floor, _naive(change) + self._offset_at(change - INSTANT))  # What is repeated was done.
        while True:
            local = self._first_local(floor)
            while True:
                change = self._change_between(moment, moment + DAY)
                end = change or moment + DAY
                tick = (local - offset).replace(tzinfo=UTC)
                if tick < end:
                    return tick
                moment = end
                if change is not None:
                    break
            before = _naive(change) + offset
            offset = self._offset_at(change)
            after = _naive(change) + offset
            if self._has_fixed_hours:
                if before < after and self._misses_a_tick(before, after):
                    return change + timedelta(microseconds=self._microsecond)
                floor = max(before, after)
            else:
                floor = after

    def _misses_a_tick(self, start: datetime, end: datetime) -> bool:
        """Whether a tick of a day that exists is in this gap between local times."""
        local = self._first_local(start)
        while local < end:
            midnight = datetime.combine(local, time())
            if not (start <= midnight and midnight + DAY <= end):
                return True
            local = self._first_local(midnight + DAY)
        return False

    # ---- The zone ----

    def _offset_at(self, moment: datetime) -> timedelta:
        return moment.astimezone(self._zone).utcoffset() or timedelta()

    def _change_between(self, start: datetime, end: datetime) -> datetime | None:
        """The moment in (start, end], no more than a day, from which on the zone has another offset."""
        offset = self._offset_at(start)
        if self._offset_at(end) == offset:
            return None
        while end - start > INSTANT:
            middle = start + (end - start) / 2
            if self._offset_at(middle) == offset:
                start = middle
            else:
                end = middle
        return end

    # ---- The fields ----

    def _values(self, name: str) -> list[int]:
        given: Any = getattr(self._job, name)
        allowed = _RANGES[name]
        if given is None:
            return list(allowed)
        several = isinstance(given, Iterable) and not isinstance(given, str)
        values = sorted({_number(value) for value in (given if several else [given])})
        if not values or values[0] not in allowed or values[-1] not in allowed:
            raise ValueError(f"{self._job.name}: {name}={given!r} is not from {allowed[0]} to {allowed[-1]}.")
        return values

    def _first_local(self, floor: datetime) -> datetime:
        """The first local time from this one on that all fields match."""
        if floor.microsecond > self._microsecond:
            floor += SECOND
        floor = floor.replace(microsecond=self._microsecond)
        first = self._time_from(0, 0, 0)
        day, earliest = floor.date(), self._time_from(floor.hour, floor.minute, floor.second)
        last = date(day.year + MAX_YEARS, 1, 1)
        while day < last:
            if day.month not in self._months:
                day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
            elif earliest is not None and day.day in self._days and day.weekday() in self._weekdays:
                return datetime.combine(day, earliest)
            else:
                day += DAY
            earliest = first
        raise ValueError(f"{self._job.name}: no day matches its month, day and weekday.")

    def _time_from(self, hour: int, minute: int, second: int) -> time | None:
        """The first time of a day from this one on that matches."""
        hours, minutes, seconds = self._hours, self._minutes, self._seconds
        for found in hours[bisect_left(hours, hour) :]:
            if found > hour:
                return time(found, minutes[0], seconds[0], self._microsecond)
            for also in minutes[bisect_left(minutes, minute) :]:
                if also > minute:
                    return time(found, also, seconds[0], self._microsecond)
                if (place := bisect_left(seconds, second)) < len(seconds):
                    return time(found, also, seconds[place], self._microsecond)
        return None


@dataclass
class ZonedCronJob(CronJob):
    """ARQ's, which computes its ticks so; for workers without a database, which are ARQ's own."""

    zone: tzinfo | None = None

    def calculate_next(self, prev_run: datetime) -> None:
        """Sets `next_run` to the first tick after a moment."""
        self.next_run = Schedule(self, self.zone).next_after(prev_run)


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


def _number(value: Any) -> int:
    return WEEKDAYS.index(value.lower()) if isinstance(value, str) and value.lower() in WEEKDAYS else int(value)

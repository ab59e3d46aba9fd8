"""The ticks of a cron job, by the rules of its zone: each once, also when the clocks change."""

import time as clock
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from arq import cron
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.worker.schedule import Schedule, ZonedCronJob

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


async def tick(ctx: dict[Any, Any]) -> None:
    """Nothing: only its ticks matter here."""


def schedule(zone: str | None, **fields: Any) -> Schedule:
    return Schedule(cron(tick, **{"microsecond": 0} | fields), None if zone is None else ZoneInfo(zone))


def ticks(of: Schedule, start: datetime, end: datetime) -> list[datetime]:
    """All in [start, end)."""
    found, moment = [], start - timedelta(microseconds=1)
    while (moment := of.next_after(moment)) < end:
        found.append(moment)
    return found


def local(zone: str, found: list[datetime]) -> list[str]:
    return [moment.astimezone(ZoneInfo(zone)).strftime("%d %H:%M %z") for moment in found]


def around(zone: str, day: date, days: int = 1, **fields: Any) -> list[str]:
    """The ticks of a day, or of so many, in local time."""
    start = datetime.combine(day, datetime.min.time(), ZoneInfo(zone))
    end = datetime.combine(day + days * DAY, datetime.min.time(), ZoneInfo(zone))
    return local(zone, ticks(schedule(zone, **fields), start.astimezone(UTC), end.astimezone(UTC)))


# ---- Examples ----


def test_every_ten_minutes_is_every_ten_minutes_when_the_clocks_go_back() -> None:
    found = ticks(
        schedule("Europe/Berlin", minute=set(range(0, 60, 10))),
        datetime(2026, 10, 24, 22, tzinfo=UTC),
        datetime(2026, 10, 25, 4, tzinfo=UTC),
    )
    assert found == [datetime(2026, 10, 24, 22, tzinfo=UTC) + number * 10 * MINUTE for number in range(36)]


def test_every_ten_minutes_is_every_ten_minutes_when_the_clocks_go_forward() -> None:
    start = datetime(2026, 3, 28, 23, tzinfo=UTC)
    found = ticks(schedule("Europe/Berlin", minute=set(range(0, 60, 10))), start, start + timedelta(hours=6))
    assert found == [start + number * 10 * MINUTE for number in range(36)]


BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"


@pytest.mark.parametrize(
    ("zone", "day", "fields", "expected"),
    [
        # A time that is skipped: once, when the clocks have changed.
        (BERLIN, date(2026, 3, 29), {"hour": 2, "minute": 30}, ["29 03:00 +0200"]),
        (NEW_YORK, date(2026, 3, 8), {"hour": 2, "minute": 30}, ["08 03:00 -0400"]),
        (LORD_HOWE, date(2026, 10, 4), {"hour": 2, "minute": 15}, ["04 02:30 +1100"]),
        # Several: once for all of them, and not a second time for one that is due then.
        (BERLIN, date(2026, 3, 29), {"hour": 2, "minute": {0, 15, 30}}, ["29 03:00 +0200"]),
        (BERLIN, date(2026, 3, 29), {"hour": {2, 3}, "minute": 0}, ["29 03:00 +0200"]),
        (BERLIN, date(2026, 3, 29), {"hour": {2, 3}, "minute": 30}, ["29 03:00 +0200", "29 03:30 +0200"]),
        # A time that is there twice: once.
        (BERLIN, date(2026, 10, 25), {"hour": 2, "minute": 30}, ["25 02:30 +0200"]),
        (NEW_YORK, date(2026, 11, 1), {"hour": 1, "minute": {0, 30}}, ["01 01:00 -0400", "01 01:30 -0400"]),
        (LORD_HOWE, date(2026, 4, 5), {"hour": 1, "minute": 45}, ["05 01:45 +1100"]),
        # The hour in which it is neither.
        (BERLIN, date(2026, 10, 25), {"hour": 3, "minute": 0}, ["25 03:00 +0100"]),
        (BERLIN, date(2026, 3, 29), {"hour": 1, "minute": 59}, ["29 01:59 +0100"]),
        # Midnight that is skipped.
        ("America/Santiago", date(2026, 9, 6), {"hour": 0, "minute": 0}, ["06 01:00 -0300"]),
        ("Asia/Beirut", date(2026, 3, 29), {"hour": 0, "minute": 0}, ["29 01:00 +0300"]),
        # Open hours, half an hour of a change.
        (
            LORD_HOWE,
            date(2026, 10, 4),
            {"hour": None, "minute": {0, 30}},
            [f"04 {hour:02}:{minute:02} {'+1030' if hour < 2 else '+1100'}" for hour in range(24) for minute in (0, 30)
             if (hour, minute) != (2, 0)],
        ),
        # Open hours, though all are named.
        (
            BERLIN,
            date(2026, 10, 25),
            {"hour": set(range(24)), "minute": 0},
            ["25 00:00 +0200", "25 01:00 +0200", "25 02:00 +0200", "25 02:00 +0100",
             *(f"25 {hour:02}:00 +0100" for hour in range(3, 24))],
        ),
    ],
)  # fmt: skip
def test_a_day_on_which_the_clocks_change(zone: str, day: date, fields: dict[str, Any], expected: list[str]) -> None:
    assert around(zone, day, **fields) == expected


def test_a_day_that_does_not_exist_has_no_tick() -> None:
    found = around("Pacific/Apia", date(2011, 12, 28), 5, hour=2, minute=30)
    assert found == ["28 02:30 -1000", "29 02:30 -1000", "31 02:30 +1400", "01 02:30 +1400"]


def test_a_leap_day() -> None:
    found = ticks(
        schedule("UTC", month=2, day=29, hour=0, minute=0),
        datetime(2095, 1, 1, tzinfo=UTC),
        datetime(2109, 1, 1, tzinfo=UTC),
    )
    assert [moment.year for moment in found] == [2096, 2104, 2108]


@pytest.mark.parametrize("weekday", ["mon", "Mon", 0, {0}, ["mon"]])
def test_a_weekday_has_a_name_or_a_number(weekday: Any) -> None:
    found = ticks(
        schedule("Asia/Kolkata", weekday=weekday, hour=0, minute=0),
        datetime(2026, 11, 1, tzinfo=UTC),
        datetime(2026, 12, 1, tzinfo=UTC),
    )
    assert local("Asia/Kolkata", found) == [f"{day:02} 00:00 +0530" for day in (2, 9, 16, 23, 30)]


def test_ticks_have_their_microsecond_and_are_the_ones_of_before() -> None:
    """Workers of two releases propose the same tick: its id is made of it."""
    job = cron(tick, hour=3, minute=7)
    zone, now = ZoneInfo(BERLIN), datetime(2026, 6, 1, 12, tzinfo=UTC)
    job.calculate_next(now.astimezone(zone))
    assert job.next_run is not None
    assert Schedule(job, zone).next_after(now) == job.next_run.astimezone(UTC)
    assert Schedule(job, zone).next_after(now).microsecond == 123_456


def test_a_tick_that_makes_up_for_a_gap_comes_once_for_a_worker_that_starts_within_its_second() -> None:
    one = Schedule(cron(tick, hour=2, minute=30), ZoneInfo(BERLIN))
    change = datetime(2026, 3, 29, 1, tzinfo=UTC)
    due = change + timedelta(microseconds=123_456)
    assert one.next_after(change + timedelta(microseconds=1)) == due
    assert one.next_after(due) == datetime(2026, 3, 30, 0, 30, 0, 123_456, tzinfo=UTC)


def test_without_a_zone_it_is_the_systems_with_its_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", BERLIN)
    clock.tzset()
    try:
        found = ticks(
            schedule(None, hour=2, minute=30), datetime(2026, 10, 24, tzinfo=UTC), datetime(2026, 10, 27, tzinfo=UTC)
        )
    finally:
        monkeypatch.undo()
        clock.tzset()
    assert local(BERLIN, found) == ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]


@pytest.mark.parametrize(
    "fields",
    [{"hour": 24}, {"minute": -1}, {"month": {0, 3}}, {"weekday": 7}, {"microsecond": 1_000_000}, {"second": set()}],
)
def test_a_field_out_of_its_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        schedule("UTC", **fields)


@pytest.mark.parametrize("fields", [{"month": 2, "day": 30}, {"month": {4, 6}, "day": 31}])
def test_a_job_that_is_never_due_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no day matches"):
        schedule("UTC", **fields)


def test_the_last_tick_of_a_period() -> None:
    hourly, now = schedule("UTC", minute=0), datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
    assert hourly.last_within(MINUTE, now) == datetime(2026, 6, 1, 12, tzinfo=UTC)
    assert hourly.last_within(MINUTE, now + MINUTE) is None
    assert schedule("UTC", second=set(range(60))).last_within(MINUTE, now) == now


def test_a_worker_without_a_database_has_the_same_ticks() -> None:
    job = ZonedCronJob(**vars(cron(tick, minute=set(range(0, 60, 10)), microsecond=0)), zone=ZoneInfo(BERLIN))
    job.calculate_next(datetime(2026, 10, 25, 0, 55, tzinfo=UTC).astimezone(ZoneInfo(BERLIN)))
    assert job.next_run == datetime(2026, 10, 25, 1, tzinfo=UTC)


# ---- Every zone, every schedule ----

ZONES = [BERLIN, NEW_YORK, LORD_HOWE, "Africa/Casablanca", "Asia/Kolkata", "UTC", "Pacific/Apia", "America/Santiago",
         "Asia/Beirut", "America/Scoresbysund", "Pacific/Chatham", "America/St_Johns"]  # fmt: skip


def changes(zone: str, year: int) -> list[datetime]:
    """The hours of a year in which a zone gets another offset."""
    hours = [datetime(year, 1, 1, tzinfo=UTC) + number * timedelta(hours=1) for number in range(366 * 24)]
    return [hour for hour in hours if _offset(zone, hour) != _offset(zone, hour + timedelta(hours=1))]


def _offset(zone: str, moment: datetime) -> timedelta | None:
    return moment.astimezone(ZoneInfo(zone)).utcoffset()


STARTS = [
    (zone, change - timedelta(days=2))
    for zone in ZONES
    for year in (2011, 2026)
    for change in changes(zone, year) or [datetime(year, 6, 1, tzinfo=UTC)]
]
fields_of = st.fixed_dictionaries(
    {
        "hour": st.one_of(st.none(), st.integers(0, 4), st.sets(st.integers(0, 23), min_size=1)),
        "minute": st.one_of(st.integers(0, 59), st.sets(st.sampled_from(range(0, 60, 5)), min_size=1)),
        "weekday": st.one_of(st.none(), st.sampled_from(["sun", 6, {5, 6, 0}])),
    }
)


@pytest.mark.parametrize(("zone", "start"), STARTS)
@settings(max_examples=4, deadline=None)
@given(fields=fields_of)
def test_every_tick_is_there_once(zone: str, start: datetime, fields: dict[str, Any]) -> None:
    end = start + 4 * DAY
    found = ticks(schedule(zone, **fields), start, end)
    assert found == _by_looking_at_each_minute(zone, start, end, fields)


def _by_looking_at_each_minute(zone: str, start: datetime, end: datetime, fields: dict[str, Any]) -> list[datetime]:
    """The same, the slow way: by what the wall clock shows in each minute of three days more on both sides."""
    rules = ZoneInfo(zone)
    minutes = [start - 3 * DAY + number * MINUTE for number in range(10 * 24 * 60)]
    shown = [minute.astimezone(rules).replace(tzinfo=None) for minute in minutes]
    days = sorted({wall.date() for wall in shown})
    first = dict(zip(reversed(shown), reversed(minutes), strict=True))
    hours, wanted = _numbers(fields["hour"], 24), _numbers(fields["minute"], 60)
    weekdays = {6 if day == "sun" else day for day in _numbers(fields["weekday"], 7)}
    due = set()
    if len(hours) == 24:
        due = {
            minute for minute, wall in zip(minutes, shown, strict=True)
            if wall.minute in wanted and wall.weekday() in weekdays
        }  # fmt: skip
    else:
        for day in days[1:-1]:
            for hour in hours if day.weekday() in weekdays else ():
                for minute in wanted:
                    wall = datetime.combine(day, time(hour, minute))
                    due.add(first.get(wall) or next(at for at, then in zip(minutes, shown, strict=True) if then > wall))
    return sorted(moment for moment in due if start <= moment < end)


def _numbers(given: Any, most: int) -> set[Any]:
    return set(range(most)) if given is None else given if isinstance(given, set) else {given}

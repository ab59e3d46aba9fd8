"""Ends process groups when the process that started them dies without doing so itself, as by kill -9.

It runs in a session of its own. Each line on its standard input is a group to end, once that input ends; with a
minus before it, a group that has ended already.
"""

import os
import signal
import sys
import time

GRACE_SECONDS = 12.0  # The worker gives its jobs 10.


def main() -> None:
    """Wait for the end of standard input, then stop what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: list[int] = []
    for group in map(int, sys.stdin):
        if group > 0:
            groups.append(group)
        elif -group in groups:
            groups.remove(-group)
    end_groups(groups)


def end_groups(groups: list[int]) -> None:
    """SIGTERM, and SIGKILL for those that are still there after the grace."""
    deadline = time.monotonic() + GRACE_SECONDS
    groups = [group for group in groups if signal_group(group, signal.SIGTERM)]
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        groups = [group for group in groups if signal_group(group, 0)]
    for group in groups:
        signal_group(group, signal.SIGKILL)


def signal_group(group: int, number: int) -> bool:
    """Send a signal, or none for 0, and say whether anybody was there to get it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS answers the latter for a group of zombies.
        return False
    return True


if __name__ == "__main__":
    main()

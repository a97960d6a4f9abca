"""How long the machine was suspended: time that the loop's clock does not count, and SQS's clock does."""

import time

_QUICK = 0.005
"""Seconds within which the clocks are read together; a process that was frozen in between reads them once more."""


def machine_slept() -> float:
    """Return the seconds that this machine was suspended since it was started; 0.0 where that cannot be known.

    On Linux ``CLOCK_MONOTONIC``, by which asyncio's timers run, stands still while the machine is suspended, and
    ``CLOCK_BOOTTIME`` goes on.
    """
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    if clock is None:
        return 0.0
    while True:
        before = time.monotonic()
        boot = time.clock_gettime(clock)
        after = time.monotonic()
        if after - before < _QUICK:
            return max(0.0, boot - after)

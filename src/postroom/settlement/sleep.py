"""How long the machine was suspended: time that the loop's clock does not count, and SQS's clock does."""

import time
from time import monotonic
from typing import NamedTuple

_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)
"""It counts while the machine is suspended; only Linux has it."""
_QUICK = 0.005
"""Seconds within which the clocks are read together; a process that was frozen in between reads them once more."""


class Moment(NamedTuple):
    """A time of the loop, and what its clock did not count until then."""

    time: float
    slept: float
    """Seconds that the machine was suspended in all."""


def machine_slept() -> float:
    """Return the seconds that this machine was suspended since it was started; 0.0 where that cannot be known.

    On Linux ``CLOCK_MONOTONIC``, by which asyncio's timers run, stands still while the machine is suspended, and
    ``CLOCK_BOOTTIME`` goes on.
    """
    if _CLOCK is None:
        return 0.0
    while True:
        before = monotonic()
        boot = time.clock_gettime(_CLOCK)
        after = monotonic()
        if after - before < _QUICK:
            return boot - after if boot > after else 0.0

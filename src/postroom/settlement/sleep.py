"""How long the machine was suspended: time that the loop's clock does not count, and SQS's clock does."""

import time
from time import monotonic
from typing import NamedTuple

_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)
"""It counts while the machine is suspended; only Linux has it."""


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
    # In this order: a process that was frozen in between finds too little, and the rest at its next look.
    return time.clock_gettime(_CLOCK) - monotonic()

"""Signals for commands that run in this very process."""

import asyncio
import signal


async def interrupt(number: signal.Signals) -> None:
    """Send a signal to a command that listens for it, and return once it has heard."""
    assert signal.getsignal(number) is not signal.SIG_DFL  # it would end this program
    signal.raise_signal(number)
    while signal.getsignal(number) is not signal.SIG_DFL:  # the next one ends it
        await asyncio.sleep(0)

"""What the log says of a user's function that fails again and again: it is called for each message, or each event."""

import logging
from collections.abc import Hashable, Mapping
from time import monotonic
from typing import Final

from postroom.log_fields import Log
from postroom.redaction import log_error

_QUIET: Final = 60.0
"""Seconds between two lines about one function."""


class Repeats:
    """Tells of the first failure of a function at once, and then once a minute, with how many others there were."""

    __slots__ = ("_noted",)

    def __init__(self) -> None:
        self._noted: dict[Hashable, tuple[float, int]] = {}
        """By function: when it may be told of again, and how many failures are untold."""

    def failed(
        self,
        function: Hashable,
        log: Log,
        text: str,
        *arguments: object,
        error: BaseException | None = None,
        level: int = logging.ERROR,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Note a failure of a function, and log it if it is time for that.

        Args:
            function: which one. There are few of them; they are remembered.
            log: where.
            text: what happened, and what follows.
            arguments: for the text.
            error: what it raised; None where it returned something wrong.
            level: how loud the line is.
            extra: what ``about`` returns.
        """
        now = monotonic()
        due, untold = self._noted.get(function, (now, 0))
        if now < due:
            self._noted[function] = due, untold + 1
            return
        self._noted[function] = now + _QUIET, 0
        if untold:
            text, arguments = f"{text} (failed %d times more since the last such line)", (*arguments, untold)
        if error is None:
            log.log(level, text, *arguments, extra=extra)
        else:
            log_error(log, level, text, *arguments, error=error, extra=extra)

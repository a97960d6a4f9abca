"""The short way to SQS, for the three calls that a consumer makes for every message.

It makes one attempt, signed with botocore's credentials and sent to botocore's endpoint. Anything but a clean answer
is a *miss*, and the caller makes the call by the ordinary client. Its retries, error classes and clock-skew advice
apply. So nothing is decided here that botocore decides otherwise; see docs/transports.md.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from postroom.errors import Throttled
from postroom.log_fields import Log, Step
from postroom.redaction import quote
from postroom.transports.aws.breaker import Breaker
from postroom.transports.aws.clock import TOLERANCE
from postroom.transports.aws.conditions import Endpoint
from postroom.transports.aws.errors import kind_of
from postroom.transports.aws.http import Answer, HttpPool, NoAnswer
from postroom.transports.aws.signing import Credentials, Signer
from postroom.transports.aws.wire import Parameters, error_code_of

T = TypeVar("T")

log: Final = Log("postroom.transports", Step.CLIENT)

_REFRESH: Final = 10.0
"""Seconds that a refresh of the credentials may take before the ordinary client is left to wait for it."""
_OWN_CLOCK: Final = 0.0
"""No seconds to add to this machine's clock."""
_OFF: Final = (
    "The clock of this machine differs from SQS's by %.0f s: receives, deletes and extensions are signed for SQS's "
    "time; other calls fail until the clock is set right"
)

_encode: Final = msgspec.json.Encoder().encode


class HotPath:
    """Makes calls past botocore's pipeline.

    Args:
        endpoint: where to, and what to sign for.
        credentials: the credentials of the botocore session; asked at every call, so that their refresh stays
            botocore's.
        pool: the connections; closed by ``aclose``.
        breaker: when to leave it alone.
    """

    __slots__ = (
        "_breaker",
        "_clock",
        "_credentials",
        "_endpoint",
        "_frozen",
        "_pool",
        "_refreshed",
        "_signer",
        "hits",
        "misses",
    )

    def __init__(self, endpoint: Endpoint, credentials: Any, pool: HttpPool) -> None:
        self._endpoint = endpoint
        self._credentials = credentials
        self._refreshed = hasattr(credentials, "refresh_needed")
        self._pool = pool
        self._breaker = Breaker()
        self._clock = _OWN_CLOCK
        self._frozen: Credentials | None = None
        self._signer: Signer
        self.hits: int = 0
        """Calls that it answered."""
        self.misses: int = 0
        """Calls that it tried and left to the ordinary client."""

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._pool)

    async def call(self, operation: str, parameters: Parameters, read: Callable[[bytes], T]) -> T | None:
        """Make one attempt; return what ``read`` makes of a clean answer, or None for a miss.

        After a miss the request may have taken effect all the same, as after any lost answer.
        """
        if not self._breaker.allows(asyncio.get_running_loop().time()):
            return None
        try:
            signer = await self._current_signer()
            now = None if self._clock == _OWN_CLOCK else int(time.time() + self._clock)
            answer = await self._pool.exchange(signer.request(operation, _encode(parameters), now=now))
            result = read(_body_of(answer))
        except Exception as error:
            self._miss(operation, error)
            return None
        self.hits += 1
        if self._breaker.hit():
            log.info("SQS hot path: taken again")
        return result

    def set_clock(self, ahead: float) -> None:
        """Sign for another time from now on, by so many seconds ahead of this machine's clock.

        Called with what the ordinary client learnt: after a refusal how far off the clock is, after a success that it
        is right.
        """
        if abs(ahead) < TOLERANCE:
            ahead = _OWN_CLOCK
        if ahead == self._clock:
            return
        if self._clock == _OWN_CLOCK:
            log.warning(_OFF, abs(ahead))
        elif ahead == _OWN_CLOCK:
            log.info("The clock of this machine is right again")
        self._clock = ahead

    async def aclose(self) -> None:
        """Close the connections. Calls under way miss."""
        await self._pool.aclose()

    async def _current_signer(self) -> Signer:
        if self._refreshed:
            async with asyncio.timeout(_REFRESH):  # a process or a service gives them, which may hang
                frozen: Credentials = await self._credentials.get_frozen_credentials()
        else:
            frozen = await self._credentials.get_frozen_credentials()
        if frozen != self._frozen:
            self._signer = Signer(self._endpoint.scope, frozen)
            self._frozen = frozen
        return self._signer

    def _miss(self, operation: str, error: Exception) -> None:
        self.misses += 1
        if isinstance(error, NoAnswer) and error.stale:
            return  # the other side may close an idle connection at any time; that is no reason to leave the path
        throttled = isinstance(error, _Refused) and error.kind is Throttled
        # What botocore or the JSON says may quote a credential or a body: only the type of those errors is told.
        reason = str(error) if isinstance(error, NoAnswer | _Refused) else type(error).__name__
        pause = self._breaker.miss(asyncio.get_running_loop().time(), throttled=throttled)
        if pause is not None:
            log.info("SQS hot path: left alone for %g s after %s: %s", pause, operation, reason)
        else:
            log.debug("SQS hot path: %s by the ordinary client: %s", operation, reason)


class _Refused(Exception):
    def __init__(self, answer: Answer) -> None:
        code = error_code_of(answer.body)
        super().__init__(f"HTTP {answer.status} {quote(code)}".rstrip())
        self.kind = kind_of(code, answer.status)


def _body_of(answer: Answer) -> bytes:
    if answer.status != 200:
        raise _Refused(answer)
    return answer.body

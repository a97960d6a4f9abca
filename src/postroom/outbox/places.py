"""Where tenants' databases are: a relay follows a tenant that was moved, from whatever process."""

import asyncio
import logging
from collections.abc import Collection
from typing import Any, Final, Generic

from postroom.log_fields import Log, Step, about
from postroom.redaction import log_error
from postroom.resources import ResourcePool, display_key
from postroom.tasks import has_to_leave
from postroom.types import C

_log = Log("postroom.outbox", Step.SEND)

_LOOKS: Final = 5
"""Looks at an outbox for one question to the registry: it may be a service of its own."""
_OFTEN: Final = 5.0
"""Seconds between two questions about one tenant, at least."""
_ANSWER: Final = 2.0
"""Seconds for an answer. Without one the relay goes on where it is."""


class Places(Generic[C]):
    """Asks the registry where each tenant is, and has what is open elsewhere closed.

    A relay looks so often that what it has opened is never idle: nothing else would ever close it.

    Args:
        pool: where the databases are leased. It tells nothing where its provider has no ``place``.
        interval: seconds between two looks at one tenant.
    """

    def __init__(self, pool: ResourcePool[C, Any], interval: float) -> None:
        self._pool = pool
        self._period = max(_OFTEN, _LOOKS * interval)
        self._time = asyncio.get_running_loop().time
        self._known: dict[C, tuple[str | None, float]] = {}  # the place, and when to ask again

    async def follow(self, context: C) -> None:
        """Have the next lease of a tenant be one of the database that its registry names.

        To be called before each lease: what is opened after an answer is at that place, or the
        next answer differs. It asks only now and then, and raises nothing.
        """
        asked = context in self._known
        before, again = self._known.get(context, (None, 0.0))
        if self._time() < again:
            return
        place = await self._ask(context)
        self._known[context] = (before if place is None else place, self._time() + self._period)
        if before is None and asked and place is not None:
            await self._pool.invalidate(context)  # it was opened without an answer, and may be elsewhere
        elif before is not None and place not in {None, before}:
            await self._pool.invalidate(context)
            text = "The database of tenant %s is at %s now, and no longer at %s: its outbox is relayed from there"
            _log.warning(text, display_key(context), place, before, extra=about(tenant=context))

    def keep(self, listed: Collection[C]) -> None:
        """Forget tenants that are neither listed nor open."""
        if len(self._known) > len(listed):
            kept = set(listed)
            gone = [each for each in self._known if each not in kept and not self._pool.is_open(each)]
            for context in gone:
                del self._known[context]

    async def _ask(self, context: C) -> str | None:
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(_ANSWER):
                return await self._pool.place_of(context)
        except BaseException as error:  # whatever a registry raises: the lease meets it, too
            if has_to_leave(error, task):
                raise
            text = "The registry does not tell where the database of tenant %s is; its outbox is relayed as before"
            log_error(_log, logging.DEBUG, text, display_key(context), error=error, extra=about(tenant=context))
            return None

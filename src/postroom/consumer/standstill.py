"""Tells when nothing is received any longer, because of what is held here, and what to do about it."""

from collections import Counter
from typing import Final

from postroom.consumer.core import Core
from postroom.display import counted
from postroom.log_fields import Log, Step, about, tenant_in_words
from postroom.outages import Kind
from postroom.tasks import Tasks

_log = Log("postroom.consumer", Step.RECEIVE)

_STANDSTILL: Final = Kind("Nothing is received", "consumer", _log, Step.RECEIVE, prefixed=False)
_HERE: Final = "this consumer"


class Standstill:
    """Whether what is held, and neither runs nor could with a slot, takes all the room. It is told once.

    Where it comes and goes, it is told now and then.
    """

    def __init__(self, core: Core, tasks: Tasks) -> None:
        self._core = core
        self._tasks = tasks
        self._told = False

    def look(self, rejecting: int) -> None:
        """Warn if nothing is received any longer. So many messages are on their way to the dead-letter queue."""
        core, scheduler = self._core, self._core.scheduler
        room = core.capacity()
        full = core.is_full or (scheduler.blocked > room and core.taken(room) >= room)
        stands = full and not scheduler.running and not scheduler.ready
        outages, now = self._tasks.outages, self._tasks.time()
        if not stands and self._told:
            if outages.worked(_STANDSTILL, _HERE, now):
                text = "Messages are received again as there is room: what took all of it runs now, or has gone"
                _log.warning(text)
        elif stands and outages.failed(_STANDSTILL, _HERE, "full", "what is held here takes all the room", now).is_told:
            self._tell(rejecting)
        self._told = stands

    def _tell(self, rejecting: int) -> None:
        core = self._core
        kinds = {
            "of tenants that cannot run now": core.scheduler.size,
            "of groups that stand still": core.halted,
            "on their way to the dead-letter queue": rejecting,
        }
        shown = [f"{counted(count, 'message')} {kind}" for kind, count in kinds.items() if count]
        what = " and ".join(shown) or "messages that SQS has not confirmed to be deleted or given back"
        by_memory = ", all of Polling(memory=...)" if core.is_full else ""
        text = (
            "Nothing is received any longer: %s take all the room, with %d bytes of bodies%s. It goes on when a "
            "tenant is resumed, diverted or available again, or SQS takes what it is sent"
        )
        waiting = Counter(job.tenant for job in core.scheduler.waiting_tickets())
        if not waiting:
            _log.warning(text, what, core.held_bytes, by_memory)
            return
        ((tenant, most),) = waiting.most_common(1)
        text += ". %d of them are of %s: resume it, or divert it to a queue of its own"
        said = (what, core.held_bytes, by_memory, most, tenant_in_words(tenant))
        _log.warning(text, *said, extra=about(tenant=tenant))

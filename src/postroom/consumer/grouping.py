"""Whether MessageGroupId and context agree about the tenant of a message."""

from collections.abc import Callable, Hashable
from typing import Final

from postroom.log_fields import Log, Step, about

_log = Log("postroom.consumer", Step.CONTEXT)

REMEMBER: Final = 10_000
"""Message groups remembered at most; then all are forgotten."""
_SILENCE: Final = 60.0
_NEW: Final = object()


class Grouping:
    """Compares what SQS's fair queues take for a tenant, the MessageGroupId, with the tenant of the context.

    Whatever the groups are called, each should have one tenant, and each tenant one group: tenants that share a group
    are one tenant to the queue, where a quiet one waits behind a noisy one; and a tenant of many groups is many small
    ones to it, none of them noisy. Where a pool has ``key=``, several contexts may be one tenant here and still have
    groups of their own. A mismatch is counted and logged, at most once per minute; it fails no message. To refuse such
    messages there is ``cross_check_group``.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-fair-queues-detailed.html
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tenants: dict[str, Hashable] = {}
        self._groups: dict[Hashable, str] = {}
        self._silent_until = 0.0
        self.mismatches: int = 0
        """How often a message came in a group of another tenant, or a tenant came with one more group."""

    def check(self, group: str, tenant: Hashable, context: Hashable) -> None:
        """Compare one message's group with those before it."""
        known = self._tenants.get(group, _NEW)
        if known is tenant:
            return
        if known is _NEW:
            self._meet(group, tenant, context)
        elif known != tenant:
            text = "message group '%s' has messages of several tenants, which are one to SQS's fair queues"
            self._tell(text, group, tenant)

    def _meet(self, group: str, tenant: Hashable, context: Hashable) -> None:
        if len(self._tenants) >= REMEMBER:
            self._tenants.clear()
            self._groups.clear()
        self._tenants[group] = tenant
        if self._groups.setdefault(tenant, group) != group and tenant == context:
            text = "message group '%s' is one more of the same tenant, which is several to SQS's fair queues"
            self._tell(text, group, tenant)

    def _tell(self, text: str, group: str, tenant: Hashable) -> None:
        self.mismatches += 1
        now = self._clock()
        if now >= self._silent_until:
            self._silent_until = now + _SILENCE
            text = f"MessageGroupId and context disagree (%d so far): {text}"
            _log.warning(text, self.mismatches, group, extra=about(tenant=tenant))

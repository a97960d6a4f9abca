"""A second witness for the tenant: the message group."""

import inspect
from collections.abc import Awaitable, Callable
from typing import cast

from typing_extensions import TypeVar

from postroom.checking import check_function
from postroom.errors import ContextError
from postroom.message import Message

T = TypeVar("T")


def cross_check_group(
    resolver: Callable[[Message], T | Awaitable[T]], *, tenant: Callable[[T], str]
) -> Callable[[Message], T | Awaitable[T]]:
    """Wrap a context resolver so that a message is refused if its MessageGroupId is not its tenant.

    On a FIFO queue, or a standard queue used as a fair queue, senders put the tenant into MessageGroupId. A message
    with attributes that say something else was put together wrongly, or to deceive. A message without a group is
    refused as well: a check that can be left out is none.

    Args:
        resolver: sync or async.
        tenant: what the message group of a context is, such as ``lambda context: context.tenant_id``.

    The wrapped resolver raises ``ContextError``.
    """
    check_function("cross_check_group(resolver)", "(Message) -> context", resolver)
    check_function("cross_check_group(tenant=...)", "(context) -> message group", tenant)

    def check(context: T, message: Message) -> T:
        if message.group_id is None:
            raise ContextError("the message has no MessageGroupId to check its tenant with", message_id=message.id)
        if message.group_id != tenant(context):
            text = "the message attributes name another tenant than the MessageGroupId"
            raise ContextError(text, message_id=message.id)
        return context

    async def check_later(context: Awaitable[T], message: Message) -> T:
        """Wait for an async resolver, then check."""
        return check(await context, message)

    def resolve(message: Message) -> T | Awaitable[T]:
        context = resolver(message)
        if inspect.isawaitable(context):
            return check_later(cast("Awaitable[T]", context), message)
        return check(context, message)

    vars(resolve)["unwraps"] = getattr(resolver, "unwraps", None)
    return resolve

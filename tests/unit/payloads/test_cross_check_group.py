"""The message group is a second witness for the tenant."""

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

import pytest

from postroom.errors import ContextError, MissingAttribute
from postroom.message import Message, MessageAttribute
from postroom.payloads import cross_check_group
from support.shop import tenant_of


def message(group: str | None) -> Message:
    """Make a message of tenant-a in a group."""
    system = {} if group is None else {"MessageGroupId": group}
    attributes = {"tenantId": MessageAttribute(string_value="tenant-a")}
    return Message(id="m-1", body="", message_attributes=attributes, system_attributes=system)


async def look_up(message: Message) -> str:
    """Resolve the tenant, later."""
    await asyncio.sleep(0)
    return message.attributes["tenantId"]


async def resolve(resolver: Any, received: Message) -> Any:
    """Ask a sync or async resolver through the check."""
    context = cross_check_group(resolver, tenant=lambda tenant: tenant)(received)
    return await cast("Awaitable[Any]", context) if resolver is look_up else context


@pytest.mark.parametrize("resolver", [tenant_of, look_up])
async def test_a_message_in_its_tenants_group_is_resolved(resolver: Any) -> None:
    """Sync or async, the context comes through."""
    assert await resolve(resolver, message("tenant-a")) == "tenant-a"


@pytest.mark.parametrize("resolver", [tenant_of, look_up])
@pytest.mark.parametrize(
    ("group", "text"),
    [
        ("tenant-b", "another tenant than the MessageGroupId"),
        ("TENANT-A", "another tenant"),
        (None, "no MessageGroupId"),
    ],
)
async def test_a_message_in_another_group_or_in_none_is_refused(resolver: Any, group: str | None, text: str) -> None:
    """The check cannot be dodged by leaving the group out."""
    with pytest.raises(ContextError, match=text) as caught:
        await resolve(resolver, message(group))
    assert caught.value.message_id == "m-1"


async def test_the_resolvers_own_error_comes_through() -> None:
    """What is missing is reported as missing."""
    with pytest.raises(MissingAttribute):
        await resolve(tenant_of, Message(id="m-1", body=""))

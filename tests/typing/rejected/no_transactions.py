"""Transactions that both checkers must refuse: the resources have no inbox, or another one."""
# ruff: noqa: D103, E501 - the names say what is wrong, and each line has its own errors

from postroom import MessageContext, SyncTransactional, Transactional
from postroom.datasources import SqliteDatabase


class Pool: ...


class Order: ...


async def no_inbox(order: Order, ctx: MessageContext[str, Pool]) -> None:
    ctx.transaction()  # E: mypy(misc) pyright(reportAttributeAccessIssue) pyright(reportUnknownMemberType)


async def no_resources(order: Order, ctx: MessageContext[str]) -> None:
    ctx.transaction()  # E: mypy(misc) pyright(reportAttributeAccessIssue) pyright(reportUnknownMemberType)


async def key_of_another_type(order: Order, ctx: MessageContext[str, SqliteDatabase]) -> None:
    ctx.transaction(key=17)  # E: mypy(call-overload) pyright(reportArgumentType) pyright(reportCallIssue)


async def not_what_it_yields(order: Order, ctx: MessageContext[str, Transactional[int]]) -> None:
    async with ctx.transaction() as tx:
        tx.upper()  # E: mypy(attr-defined) pyright(reportAttributeAccessIssue) pyright(reportUnknownMemberType)


# fmt: off
def for_the_other_kind(order: Order, ctx: MessageContext[str, Transactional[int]]) -> None:
    tx = ctx.transaction()
    with tx:  # E: mypy(attr-defined) mypy(attr-defined) pyright(reportGeneralTypeIssues) pyright(reportGeneralTypeIssues)
        pass


async def for_plain_handlers(order: Order, ctx: MessageContext[str, SyncTransactional[int]]) -> None:
    tx = ctx.transaction()
    async with tx:  # E: mypy(attr-defined) mypy(attr-defined) pyright(reportGeneralTypeIssues) pyright(reportGeneralTypeIssues)
        pass

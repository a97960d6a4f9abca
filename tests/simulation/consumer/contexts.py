"""Oracle *context*: nothing of another message is visible in a task of the library.

Each user function leaves a mark, a context variable that is never reset, and looks for marks of others; and
``current_message()`` is None or the message that the function was called for. What is called for a tenant rather than
for a message (a provider, a check, ``key=``) may see a message of that tenant, and of no other one.
"""

import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar

from postroom import current_message

mark: ContextVar[str | None] = ContextVar("mark", default=None)
"""The id of the message for which a user function ran last in this context."""
ENOUGH = 3
"""Violations that are told of one process; the others have the same cause."""


class ContextWatch:
    """What the user functions of one process see.

    Args:
        tenants: message id to tenant, of all messages.
        broken: is told what was seen.
    """

    def __init__(self, tenants: Mapping[str, str], broken: Callable[[str], None]) -> None:
        self._tenants = tenants
        self._tell = broken
        self._told = 0

    def enters(self, where: str, message: str, *, leaves_mark: bool = True) -> None:
        """Look around in a function that was called for a message, and leave a mark."""
        for name, seen in self._visible():
            if seen is not None and seen != message:
                self._broken(f"{where} of {message[:4]} sees {seen[:4]} in {name}")
        if leaves_mark:
            mark.set(message)

    def enters_for(self, where: str, tenant: str) -> None:
        """Look around in a function that was called for a tenant."""
        for name, seen in self._visible():
            if seen is not None and self._tenants.get(seen, tenant) != tenant:
                self._broken(f"{where} of {tenant} sees {seen[:4]}, of {self._tenants[seen]}, in {name}")

    def logged(self, record: logging.LogRecord) -> None:
        """Look at a log record: a message id in it is that of the current message."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        named = [each for each in arguments if isinstance(each, str) and each in self._tenants]
        for name, seen in self._visible():
            if seen is not None and named and seen not in named:
                self._broken(f"a log record of {named[0][:4]} is written with {seen[:4]} in {name}: {record.msg}")

    @staticmethod
    def _visible() -> tuple[tuple[str, str | None], ...]:
        current = current_message()
        return ("a context variable", mark.get()), (
            "current_message()",
            None if current is None else current.message.id,
        )

    def _broken(self, text: str) -> None:
        if self._told < ENOUGH:
            self._told += 1
            self._tell(text)

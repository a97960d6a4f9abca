"""The password of one physical connection, and a second try when it has just been rotated."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from postroom.datasources.registry import DataSource, ask

T = TypeVar("T")
_REFUSED: Final = frozenset({"28P01", "28000"})


@runtime_checkable
class Forgetful(Protocol):
    """A password function with a memory: it is told when the server has refused what it remembers."""

    def forget(self, password: str, /) -> None:
        """Fetch the password again at the next call, if ``password`` is still the remembered one."""
        ...


async def connected(source: DataSource, connect: Callable[[dict[str, Any]], Awaitable[T]]) -> T:
    """Connect with the source's present password. A refused one is asked for once more: a rotation may be the cause.

    Args:
        source: what the registry said.
        connect: makes the connection; it gets the keyword ``password``, or nothing where the source
            has none.
    """
    if source.password is None:
        return await connect({})
    password = await ask(source.password)
    try:
        return await connect({"password": password})
    except Exception as error:
        if getattr(error, "sqlstate", None) not in _REFUSED:
            raise
        memory: object = source.password
        if isinstance(memory, Forgetful):
            memory.forget(password)
        newer = await ask(source.password)
        if newer == password:
            if password != password.rstrip("\r\n"):
                error.add_note("the password that the function returned ends with a line break")
            raise
    return await connect({"password": newer})

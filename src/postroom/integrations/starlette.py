"""Starlette, and FastAPI: pools and consumers live as long as the application.

The web server owns the signals: consumers install no handler of their own. On SIGTERM the server finishes its
requests, then the consumers stop in order. Each worker process of the server has its own consumers and pools.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, overload

from postroom.integrations._web import Factory, Part, check_parts, started

__all__ = ["lifespan"]


@overload
def lifespan(factory: Factory, /) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]: ...


@overload
def lifespan(*parts: Part) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]: ...


def lifespan(*parts: Any) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """Return a lifespan that starts pools and consumers with the application and stops them with it.

        app = FastAPI(lifespan=lifespan(databases, orders))

    Args:
        parts: pools, clients and consumers, entered in this order and left in reverse: a pool before the consumers
            that use it. Or one function of the application, sync or async, that makes them when the application
            starts; what it returns by name, in a mapping, is ``request.state.<name>``.

    A part that cannot be started ends the start of the application. A consumer that dies later does not end it: its
    health says so (``/livez``), and the error is raised when the application stops.

    Raises:
        ConfigurationError: something that is passed cannot be entered.
    """
    check_parts(parts)
    return lambda app: started(parts, app)

"""What tests of a consumer are made of: one message in four lines, virtual time, simulated and real databases.

A name is imported when it is first used, because pytest loads the plugin of this package everywhere.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from postroom.testing.contexts import RecordedContext, context
    from postroom.testing.delivery import Delivered, deliver
    from postroom.testing.leaks import assert_no_leaks
    from postroom.testing.loop import run_virtual, settle

__all__ = ["Delivered", "RecordedContext", "assert_no_leaks", "context", "deliver", "run_virtual", "settle"]

_HOMES: Final = {
    "contexts": "RecordedContext context",
    "delivery": "Delivered deliver",
    "leaks": "assert_no_leaks",
    "loop": "run_virtual settle",
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names.split()}

if not TYPE_CHECKING:  # checkers would take it that every name exists

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"postroom.testing.{_HOME_OF[name]}"), name)
        return value


def __dir__() -> list[str]:
    return __all__

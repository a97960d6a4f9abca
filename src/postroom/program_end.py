"""The end of the program, where a function of the user's asks for it: what runs ends in order first."""

import asyncio
import functools
from collections.abc import Callable
from typing import Final, cast
from weakref import WeakKeyDictionary, WeakMethod

_Ends = list[WeakMethod[Callable[[BaseException], None]]]
_ends: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Ends]] = WeakKeyDictionary()
"""What ends in order when the program is to end, by the event loop in which it runs. Weak, since each has its loop: one
that is closed without a stop would never leave."""


def ends_the_program(error: BaseException) -> bool:
    """Whether an error asks for the end of the process, also one in a group.

    Any other error of a function that the user passed is that function's failure, whatever it is derived from: a
    ``CancelledError`` of a plain function would otherwise end the task that calls it, and tell nothing of it.
    """
    left = [error]
    while left:  # not recursive: groups may be nested as deeply as Python allows
        each = left.pop()
        if isinstance(each, BaseExceptionGroup):
            left.extend(cast("BaseExceptionGroup[BaseException]", each).exceptions)
        elif isinstance(each, SystemExit | KeyboardInterrupt):
            return True
    return False


def end_with_the_program(end: Callable[[BaseException], None]) -> Callable[[], None]:
    """Have something of this event loop ended in order by ``heed``, by a method. Returns what ends that."""
    ends = _ends.setdefault(asyncio.get_running_loop(), [])
    ends.append(WeakMethod(end))
    return functools.partial(ends.remove, ends[-1])


def heed(error: BaseException) -> None:
    """End in order what runs in this event loop, if an error of a user's function asks for the end of the program.

    Where nothing does, the error is raised. Raised in a task, it would tear the loop down under all others, and what
    consumers hold would come back no sooner than after its visibility timeout.
    """
    if not ends_the_program(error):
        return
    try:
        known = _ends.get(asyncio.get_running_loop(), ())
    except RuntimeError:  # in a thread, or after the loop's end
        known = ()
    ends = [end for each in known if (end := each()) is not None]
    if not ends:
        raise error
    for end in ends:
        end(error)

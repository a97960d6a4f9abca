"""Where code stands: the line at which a task waits, or a loop is blocked, for the log."""

import asyncio
import gc
import sys
import sysconfig
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

_LIBRARIES: Final = (
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    str(Path(__file__).parent),
)
"""Where no code of the user's is."""
_DEEPEST: Final = 200
"""Steps from a task to what it waits for in the end."""
_STEPS: Final = (
    (CoroutineType, "cr_frame", "cr_await"),
    (AsyncGeneratorType, "ag_frame", "ag_await"),
    (GeneratorType, "gi_frame", "gi_yieldfrom"),
)


class InThread(Protocol):
    """Work that a thread does."""

    @property
    def thread(self) -> int | None:
        """The thread's identifier, once it has begun."""
        ...


in_threads: Final = WeakKeyDictionary["asyncio.Task[Any]", InThread]()
"""Tasks that wait for the end of a thread's work, as those of ``def`` handlers do."""


def place_of(task: "asyncio.Task[Any] | None") -> str:
    """Return where a task waits that is not running, or the thread works that it waits for: as ``place_in``.

    Empty where no code of the user's does so.
    """
    frames: list[FrameType] = []
    if task is not None:
        work = in_threads.get(task)
        frames = _frames_of(task) if work is None else _frames_in(work.thread)
    return place_in(frames) if any(map(_is_own, frames)) else ""


def place_in(frames: list[FrameType]) -> str:
    """Say where frames stand, from the inside out: the innermost line, and the innermost one of the user's own code."""
    inner = _line(frames[0])
    own = next(filter(_is_own, frames), None)
    return inner if own is None or own is frames[0] else f"{inner}, called at {_line(own)}"


def _frames_of(task: "asyncio.Task[Any]") -> list[FrameType]:
    """Return the frames of a task, the innermost first; with those of a task that it waits for."""
    frames: list[FrameType] = []
    each: Any = task
    for _ in range(_DEEPEST):
        if issubclass(type(each), asyncio.Task):
            each = each.get_coro()
        for kind, frame, waits in _STEPS:
            if issubclass(type(each), kind):
                if (found := getattr(each, frame)) is not None:
                    frames.insert(0, found)
                each = getattr(each, waits)
                break
        else:
            # asyncio and the interpreter put objects in between that show nothing of themselves.
            each = next(filter(_is_known, gc.get_referents(each)), None)
        if each is None:
            break
    return frames


def _frames_in(thread: int | None) -> list[FrameType]:
    """Return the frames of a thread, the innermost first."""
    frames: list[FrameType] = []
    # The documented way to see another thread's stack, its underscore notwithstanding.
    each = sys._current_frames().get(thread or 0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    while each is not None:
        frames.append(each)
        each = each.f_back
    return frames


def _is_known(found: object) -> bool:
    # By its type: an object may raise when it is asked for its `__class__`, as a proxy of something that is gone.
    return issubclass(type(found), (asyncio.Task, CoroutineType, AsyncGeneratorType))


def _is_own(frame: FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(_LIBRARIES)


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"

"""Where code stands: the line at which a task waits, or a loop is blocked, for the log."""

import asyncio
import gc
import os
import sys
import sysconfig
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

_OURS: Final = f"{Path(__file__).parent}{os.sep}"
_INSTALLED: Final = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})
_LIBRARIES: Final = (*{sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}, *_INSTALLED, _OURS)
"""Where no code of the user's is, unless it is installed as a package."""
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


def waits_at(task: "asyncio.Task[Any] | None") -> str:
    """Return where a task waits that is not running, or the thread works that it waits for: as ``place_in``.

    Empty where only asyncio and postroom do so.
    """
    frames: list[FrameType] = []
    if task is not None:
        work = in_threads.get(task)
        frames = _frames_of(task) if work is None else frames_in(work.thread)
    own = _own(frames)
    return "" if own is None else _place(frames[0], own)


def place_in(frames: list[FrameType]) -> str:
    """Say where frames stand, from the inside out: the innermost line, and the innermost one of the user's own code."""
    return _place(frames[0], _own(frames))


def innermost_frame(thread: int | None) -> FrameType | None:
    """Return where a thread is, by its identifier. Called in another thread, or of a thread that waits."""
    # The documented way to see another thread's stack, its underscore notwithstanding.
    return sys._current_frames().get(thread or 0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _place(inner: FrameType, own: FrameType | None) -> str:
    return _line(inner) if own is None or own is inner else f"{_line(inner)}, called at {_line(own)}"


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


def frames_in(thread: int | None) -> list[FrameType]:
    """Return the frames of a thread, the innermost first."""
    frames: list[FrameType] = []
    each = innermost_frame(thread)
    while each is not None:
        frames.append(each)
        each = each.f_back
    return frames


def _is_known(found: object) -> bool:
    # By its type: an object may raise when it is asked for its `__class__`, as a proxy of something that is gone.
    return issubclass(type(found), (asyncio.Task, CoroutineType, AsyncGeneratorType))


def _own(frames: list[FrameType]) -> FrameType | None:
    """Return the innermost frame of the user's own code; where none is known as such, what postroom called.

    An application may be installed as a package, as its libraries are.
    """
    if (own := next(filter(_is_own, frames), None)) is not None:
        return own
    called = None
    for frame in frames:
        name = frame.f_code.co_filename
        if called is not None and name.startswith(_OURS):
            break
        if name.startswith(_INSTALLED) and not name.startswith(_OURS):
            called = frame
    return called


def _is_own(frame: FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(_LIBRARIES)


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"

"""Keeps the garbage collector out of schedules."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def one_collection() -> Iterator[None]:
    """Let the garbage collector run where the block asks for it: what it finds does not depend on what ran before.

    Everything that the block makes is young until then, so that ``gc.collect(1)`` looks at that alone.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

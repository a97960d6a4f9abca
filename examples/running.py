"""How each example is run: Ctrl-C ends it in order, and without a traceback."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

INTERRUPTED = 130
"""The exit code of what Ctrl-C ended, by the convention of shells."""


def run_example(main: Callable[[], Coroutine[Any, Any, int | None]]) -> None:
    """Run an example, and exit with what it returns. Ctrl-C cancels it, so that what it opened is closed."""
    try:
        code = asyncio.run(main())
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)

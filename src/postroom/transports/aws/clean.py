"""A context without anything in it.

A connection is often opened by a task that runs for some message, and serves others afterwards. What reads from it
and what times it must carry nothing of that message.
"""

import contextvars
from typing import Final

CLEAN: Final = contextvars.Context()
"""Never entered itself: copy it."""

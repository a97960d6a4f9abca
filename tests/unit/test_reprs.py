"""What an application prints of postroom's objects shows no secret and no payload: ``observers=[print]`` is usual."""

from typing import Any

import pytest

from postroom import Failure, MessageContext
from postroom.events import HandlerFinished, MessageFailed, PollFailed, ResourceClosed, ResourceOpenFailed
from postroom.message import Message

SECRET = "hunter2-S3CR3T"
MESSAGE = Message(id="m1", body=f'{{"password": "{SECRET}"}}', queue="orders")
ERROR = OSError(f"postgresql://app:{SECRET}@db refused\nDETAIL:  Failing row contains (1, {SECRET}).")


@pytest.mark.parametrize(
    "shown",
    [
        ResourceOpenFailed("acme", ERROR, permanent=False, retry_after=1.0),
        ResourceClosed("acme", "idle", ERROR),
        HandlerFinished(MESSAGE, "acme", 1.0, ERROR, "acme", 1),
        MessageFailed(MESSAGE, "acme", ERROR),
        PollFailed("orders", ERROR, 1.0),
        Failure(ERROR, MESSAGE, "acme", {"card": SECRET}),
    ],
    ids=lambda shown: type(shown).__name__,
)
def test_an_error_is_shown_without_what_it_quotes(shown: Any) -> None:
    """The exception itself stays in the attribute, unchanged."""
    assert SECRET not in repr(shown)
    assert "OSError: postgresql://app:***@db refused" in repr(shown)
    assert shown.error is ERROR


def test_an_event_shows_its_fields() -> None:
    """By their names, in order."""
    assert repr(PollFailed("orders", OSError("gone"), 1.5)) == (
        "PollFailed(queue='orders', error=<OSError: gone>, pause=1.5, seconds=0.0)"
    )
    assert repr(HandlerFinished(MESSAGE, "acme", 1.0, None)).endswith(
        "seconds=1.0, error=None, tenant=None, attempt=1)"
    )


def test_a_context_shows_neither_resources_nor_body() -> None:
    """A handler may log it. Resources may be a record with a token in it."""
    ctx = MessageContext[Any, Any](MESSAGE, "acme", {"token": SECRET}, "acme", 2, None)  # type: ignore[arg-type]
    assert repr(ctx) == f"MessageContext(message={MESSAGE!r}, tenant='acme', resources=<dict>, attempt=2)"

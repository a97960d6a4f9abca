"""What an application prints of postroom's objects shows no secret and no payload: ``observers=[print]`` is usual."""

from importlib import import_module
from pkgutil import walk_packages
from typing import Any

import msgspec
import pytest

import postroom
from postroom import Failure, MessageContext
from postroom.display import Discreet
from postroom.events import HandlerFinished, MessageFailed, PollFailed, ResourceClosed, ResourceOpenFailed
from postroom.message import Message, OutgoingMessage
from postroom.settlement import Delivery

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


def test_rich_shows_no_more_than_repr() -> None:
    """It lists the fields of a Struct by itself, also in tracebacks with local variables."""
    ctx = MessageContext[Any, Any](MESSAGE, "acme", {"token": SECRET}, "acme", 2, None)  # type: ignore[arg-type]
    shown = [
        MESSAGE,
        OutgoingMessage(body=SECRET),
        ctx,
        HandlerFinished(MESSAGE, "acme", 1.0, ERROR, "acme", 1),
        Delivery(message=MESSAGE, receipt_handle="", received_at=0.0, deadline=1.0, receives=1),
    ]
    for each in shown:
        (inside,) = each.__rich_repr__()
        assert f"{type(each).__name__}({inside!r})" == repr(each)
        assert SECRET not in repr(each)


def test_each_struct_with_a_repr_of_its_own_is_shown_so_by_rich() -> None:
    """A new one must not be forgotten: its ``repr`` is written because a field is not to be shown."""
    for module in walk_packages(postroom.__path__, "postroom."):
        if not module.name.startswith(("postroom.integrations", "postroom.datasources", "postroom.testing")):
            import_module(module.name)
    kinds, found = [msgspec.Struct], 0
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.__module__.startswith("postroom.") and kind.__repr__ is not msgspec.Struct.__repr__:
            found += 1
            assert issubclass(kind, Discreet), kind
    assert found > 10

"""pytest fixtures. Loaded wherever postroom is installed, so it imports nothing until a fixture is asked for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postroom.local.threaded import ThreadedServer


@pytest.fixture
def sqs_server() -> "Iterator[ThreadedServer]":
    """Run a local SQS for one test, in a thread of its own.

    It has ``endpoint_url``, ``client_options`` (for ``boto3.client("sqs", **sqs_server.client_options)``),
    ``create_queue(name, attributes)``, ``queue_url(name)``, ``counts(name)`` and ``call(function)``, which calls a
    function with the broker itself.
    """
    from postroom.local.threaded import ThreadedServer  # noqa: PLC0415 - a test run without it does not pay for it

    with ThreadedServer() as server:
        yield server

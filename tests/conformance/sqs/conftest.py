"""Fixtures of the conformance suite: the server under judgement, clients in both protocols, queues of a check's own."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from botocore.exceptions import ClientError

from conformance.sqs.checks import MakeQueue, unique
from conformance.sqs.clients import PREFIX, Target, open_client
from conformance.sqs.wire import Wire, open_wire
from postroom.local.threaded import ThreadedServer


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that every check carries."""
    config.addinivalue_line(
        "markers", "page(slug, recorded, recording): the AWS page that a conformance check is written from"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note each check's page, group and sentence beside its result, and bound its time."""
    for item in items:
        marker = item.get_closest_marker("page")
        if marker is None or not isinstance(item, pytest.Function):
            continue
        item.add_marker(pytest.mark.timeout(60))
        item.user_properties += [
            ("page", marker.args[0]),
            ("recorded", str(marker.kwargs.get("recorded", False))),
            ("group", (item.module.__doc__ or "").partition(":")[0]),
            ("sentence", " ".join((item.function.__doc__ or "").split())),
        ]


@pytest.fixture(scope="session")
def target() -> Iterator[Target]:
    """Choose the server: the endpoint of the environment, or postroom's own in a thread of this process."""
    if endpoint := os.environ.get(PREFIX + "ENDPOINT"):
        yield Target(endpoint)
        return
    with ThreadedServer() as server:
        yield Target(server.endpoint_url)


@pytest.fixture(scope="session")
def sqs(target: Target) -> Iterator[Any]:
    """Give a boto3 client, which speaks AWS JSON 1.0."""
    with open_client(target) as client:
        yield client


@pytest.fixture(scope="session")
def query_sqs(target: Target) -> Iterator[Any]:
    """Give a boto3 client that speaks the older query protocol."""
    with open_client(target, protocol="query") as client:
        yield client


@pytest.fixture(params=["json", "query"])
def either_sqs(request: pytest.FixtureRequest) -> Any:
    """Give a client of each protocol in turn."""
    return request.getfixturevalue("sqs" if request.param == "json" else "query_sqs")


@pytest.fixture
def wire(target: Target) -> Iterator[Wire]:
    """Give a raw connection."""
    with open_wire(target) as opened:
        yield opened


@pytest.fixture
def make_queue(sqs: Any) -> Iterator[MakeQueue]:
    """Give a function that creates a queue of a unique name, deleted after the check.

    Keywords are queue attributes; `fifo=True` makes a FIFO queue; `name` and `client` replace the defaults.
    """
    with ExitStack() as cleanup:

        def make(*, fifo: bool = False, name: str | None = None, client: Any = None, **attributes: Any) -> str:
            chosen = name or unique() + (".fifo" if fifo else "")
            values = {key: str(value) for key, value in attributes.items()}
            if fifo:
                values["FifoQueue"] = "true"
            using = client or sqs
            url: str = using.create_queue(QueueName=chosen, Attributes=values)["QueueUrl"]
            cleanup.callback(_delete, using, url)
            return url

        yield make


def _delete(sqs: Any, url: str) -> None:
    with suppress(ClientError):  # the check may have deleted it
        sqs.delete_queue(QueueUrl=url)


@pytest.fixture
def queue(make_queue: MakeQueue) -> str:
    """Give a standard queue with the default attributes."""
    return make_queue()


@pytest.fixture
def fifo(make_queue: MakeQueue) -> str:
    """Give a FIFO queue that deduplicates by content."""
    return make_queue(fifo=True, ContentBasedDeduplication="true")

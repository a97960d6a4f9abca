"""Every transport, judged by one suite."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
from aiobotocore.session import AioSession

from conformance.transports.suite import Backend, QueueTransportSuite, text
from postroom.local import LocalBroker, LocalServer
from postroom.transports import AwsClient, Client
from postroom.transports.memory import MemoryClient
from support.aws import isolate_aws
from support.ports import free_port

MINISTACK = "ministack@1.5.33"
"""One version, because its known deviations are listed and expected."""


class _LocalBackend:
    """The local broker, in this process or over HTTP."""

    def __init__(self, broker: LocalBroker, client: Client) -> None:
        self._broker = broker
        self._client = client

    def client(self) -> Client:
        """Return the client."""
        return self._client

    async def create_queue(self, name: str, attributes: Mapping[str, str]) -> None:
        """Create a queue."""
        self._broker.create_queue(name, attributes)


class TestMemory(QueueTransportSuite):
    """The in-process transport."""

    @asynccontextmanager
    async def open_backend(self) -> AsyncIterator[Backend]:
        """Open a broker."""
        async with LocalBroker() as broker:
            yield _LocalBackend(broker, MemoryClient(broker))


@pytest.fixture(scope="module")
def session() -> AioSession:
    """Give a botocore session for all tests: it caches the description of SQS, which takes most of the time."""
    return AioSession()


class OnLocalServer(QueueTransportSuite):
    """The AWS transport, over HTTP against the local broker."""

    __test__ = False
    hot_path: ClassVar[bool]

    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch, session: AioSession) -> None:
        isolate_aws(monkeypatch)
        self.session = session

    @asynccontextmanager
    async def open_backend(self) -> AsyncIterator[Backend]:
        """Open a server."""
        async with LocalServer() as server:
            client = AwsClient(endpoint_url=server.endpoint_url, session=self.session, hot_path=self.hot_path)
            yield _LocalBackend(server.broker, client)


class TestAwsHotPathOnLocalServer(OnLocalServer):
    """The AWS transport by its hot path."""

    __test__ = True
    hot_path = True

    async def test_the_hot_path_is_what_is_tested_here(self, backend: Backend, client: Client) -> None:
        """No call of this class misses and is made good unseen."""
        queue = await self.make(backend, client)
        await queue.send([text(1)])
        messages = await queue.receive(limit=1, wait=1, visibility=30)
        await queue.delete([messages[0].receipt_handle])
        assert isinstance(client, AwsClient)
        statistics = client.statistics()
        assert (statistics.hot_path, statistics.hot_calls, statistics.hot_misses) == (True, 2, 0)


class TestAwsOrdinaryOnLocalServer(OnLocalServer):
    """The AWS transport by botocore's client alone."""

    __test__ = True
    hot_path = False


def _uv() -> str | None:
    beside = Path(sys.prefix).parent / ".uv" / "bin" / "uv"
    return shutil.which("uv") or (str(beside) if beside.exists() else None)


@contextmanager
def _running_ministack(folder: Path) -> Iterator[str]:
    """Run ministack in an environment of its own, because it pins botocore, and yield its URL."""
    uv = _uv()
    if uv is None:
        pytest.skip("uv, which installs ministack, is not on the PATH")
    port = free_port()
    settings = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "SERVICES": "sqs", "LOG_LEVEL": "WARNING"}
    url = f"http://127.0.0.1:{port}"
    with (folder / "ministack.log").open("w") as log:
        process = subprocess.Popen(
            [uv, "tool", "run", MINISTACK], cwd=folder, env={**os.environ, **settings}, stdout=log, stderr=log
        )
        try:
            _wait_until_it_answers(port, process)
            yield url
        finally:
            process.terminate()
            process.wait(10)


def _wait_until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with suppress(subprocess.TimeoutExpired):
            pytest.fail(f"ministack ended with exit code {process.wait(0.1)}")
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
    pytest.fail("ministack does not answer")


class _MinistackBackend:
    def __init__(self, url: str, client: AwsClient) -> None:
        self._url = url
        self._client = client

    def client(self) -> Client:
        return self._client

    async def create_queue(self, name: str, attributes: Mapping[str, str]) -> None:
        sqs: Any = boto3.client("sqs", endpoint_url=self._url)
        await asyncio.to_thread(sqs.create_queue, QueueName=name, Attributes=dict(attributes))
        sqs.close()


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run ministack for all its tests."""
    with _running_ministack(tmp_path_factory.mktemp("ministack")) as url:
        yield url


@pytest.mark.skipif(not os.environ.get("POSTROOM_MINISTACK"), reason="POSTROOM_MINISTACK is not set")
class TestAwsOnMinistack(QueueTransportSuite):
    """The AWS transport against an emulator that others wrote."""

    deviations: ClassVar[Mapping[str, str]] = {
        "test_refused_messages_are_named_by_their_place": "it takes any data type of a message attribute",
        "test_deleting_again_is_no_failure": "it refuses the receipt handle of a deleted message",
        "test_one_handle_twice_in_a_batch_is_no_failure": "it refuses the receipt handle of a deleted message",
        "test_refused_changes_are_named_by_their_place": "it takes a visibility timeout above 12 hours",
        "test_the_same_attempt_gets_the_same_messages": "it does not know receive attempt ids",
    }

    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch, session: AioSession, ministack: str) -> None:
        isolate_aws(monkeypatch)
        self.session = session
        self.url = ministack

    @asynccontextmanager
    async def open_backend(self) -> AsyncIterator[Backend]:
        """Give a client of the server that runs."""
        yield _MinistackBackend(self.url, AwsClient(endpoint_url=self.url, session=self.session))

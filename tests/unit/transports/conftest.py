"""Fixtures of the transport tests."""

from collections.abc import AsyncIterator

import pytest
from aiobotocore.session import AioSession

from support.aws import isolate_aws
from unit.transports.fake_sqs import FakeSqs


@pytest.fixture(autouse=True)
def _aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run without the machine's own AWS settings."""
    isolate_aws(monkeypatch)


@pytest.fixture(scope="session")
def session() -> AioSession:
    """Give a botocore session for all tests: it caches the description of SQS, which takes most of the time."""
    return AioSession()


@pytest.fixture
async def sqs(session: AioSession) -> AsyncIterator[FakeSqs]:
    """Give a server that answers as the test says."""
    async with FakeSqs(session) as server:
        yield server

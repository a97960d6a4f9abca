"""What speaks to another service of AWS finds its region where an ``AwsClient`` finds it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from postroom.aws_session import new_session
from postroom.datasources import rds_iam_token
from postroom.integrations.claim_check import ClaimCheck
from postroom.integrations.step_functions import TaskTokens


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name a region by the variable that botocore does not know."""
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")


async def _of_claim_check() -> str:
    async with ClaimCheck("amzn-s3-demo-bucket") as bodies:
        return str(bodies._s3.opened().meta.region_name)


async def _of_task_tokens() -> str:
    async with TaskTokens() as tokens:
        return str(tokens._client.opened().meta.region_name)


async def _of_a_token_of_rds() -> str:
    return (await rds_iam_token("db.example.com", user="app")()).partition("%2Frds-db")[0].rpartition("%2F")[2]


@pytest.mark.parametrize("region_of", [_of_claim_check, _of_task_tokens, _of_a_token_of_rds])
async def test_the_region_of_the_environment_counts(region_of: Callable[[], Awaitable[str]]) -> None:
    """As it does for the queue: with AWS_REGION alone the start failed, or another region was asked."""
    assert await region_of() == "eu-west-3"


def test_the_older_variable_counts_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As botocore has it; without both the profile's counts."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    found: Any = new_session().get_config_variable("region")
    assert found == "eu-west-1"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_REGION")
    assert new_session().instance_variables().get("region") is None

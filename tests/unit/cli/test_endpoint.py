"""Where SQS is: credentials are made up for this machine, and for nothing else."""

import pytest

from postroom.cli.endpoint import use_endpoint
from postroom.errors import ConfigurationError
from postroom.transports.aws.addresses import is_loopback


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:4566", True),
        ("http://[::1]:4566", True),
        ("http://localhost:4566", True),
        ("http://sqs.localhost:4566", True),
        ("https://sqs.eu-west-1.amazonaws.com", False),
        ("http://10.0.0.1:4566", False),
        ("http://localhost.example.com", False),
        ("nonsense", False),
    ],
)
def test_loopback_is_this_machine_only(url: str, *, expected: bool) -> None:
    """By address or by name."""
    assert is_loopback(url) is expected


def test_a_local_endpoint_gets_made_up_credentials() -> None:
    """A fresh machine has none."""
    environment: dict[str, str] = {}
    use_endpoint("http://127.0.0.1:4566", None, environment)
    assert environment == {
        "AWS_ENDPOINT_URL_SQS": "http://127.0.0.1:4566",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.mark.parametrize("own", [{"AWS_ACCESS_KEY_ID": "mine", "AWS_REGION": "eu-west-1"}, {"AWS_PROFILE": "mine"}])
def test_what_is_set_is_left_alone(own: dict[str, str]) -> None:
    """Credentials, profile, region."""
    environment = dict(own)
    use_endpoint("http://localhost:4566", None, environment)
    assert environment == {**own, "AWS_ENDPOINT_URL_SQS": "http://localhost:4566"}


@pytest.mark.parametrize("url", [None, "https://sqs.eu-west-1.amazonaws.com"])
def test_aws_gets_nothing_that_was_made_up(url: str | None) -> None:
    """Missing credentials are AWS's to complain about."""
    environment: dict[str, str] = {}
    use_endpoint(url, "eu-west-1", environment)
    assert "AWS_ACCESS_KEY_ID" not in environment
    assert environment["AWS_DEFAULT_REGION"] == "eu-west-1"


def test_an_endpoint_without_a_scheme_is_refused_by_its_option() -> None:
    """It would be taken for a path."""
    with pytest.raises(ConfigurationError, match=r"^--endpoint-url \(AWS_ENDPOINT_URL_SQS\) begins with http://"):
        use_endpoint("127.0.0.1:4566", None, {})

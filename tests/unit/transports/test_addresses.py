"""What the name of a queue says of its region, account and name."""

import pytest

from postroom.errors import ConfigurationError
from postroom.transports.aws.addresses import address_of, region_of_url

VPC = "https://vpce-0a1b-us-east-1a.sqs.us-east-1.vpce.amazonaws.com/123456789012/orders"


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/orders", "eu-west-1"),
        ("https://SQS.EU-WEST-1.AMAZONAWS.COM/123456789012/orders", "eu-west-1"),
        ("https://sqs.ap-southeast-2.amazonaws.com/123456789012/orders", "ap-southeast-2"),
        ("https://sqs-fips.us-west-2.amazonaws.com/123456789012/orders", "us-west-2"),
        ("https://sqs.eu-central-1.api.aws/123456789012/orders", "eu-central-1"),
        ("https://sqs-fips.us-east-2.api.aws/123456789012/orders", "us-east-2"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/orders", "cn-north-1"),
        ("https://sqs.cn-northwest-1.api.amazonwebservices.com.cn/123456789012/orders", "cn-northwest-1"),
        ("https://sqs.us-gov-west-1.amazonaws.com/123456789012/orders", "us-gov-west-1"),
        ("https://sqs.us-iso-east-1.c2s.ic.gov/123456789012/orders", "us-iso-east-1"),
        ("https://sqs.us-isob-east-1.sc2s.sgov.gov/123456789012/orders", "us-isob-east-1"),
        ("https://sqs.eusc-de-east-1.amazonaws.eu/123456789012/orders", "eusc-de-east-1"),
        (VPC, "us-east-1"),
        ("https://vpce-1.sqs.cn-north-1.vpce.amazonaws.com.cn/123456789012/orders", "cn-north-1"),
        ("https://queue.amazonaws.com/123456789012/orders", "us-east-1"),
        ("https://eu-west-1.queue.amazonaws.com/123456789012/orders", "eu-west-1"),
        ("https://cn-north-1.queue.amazonaws.com.cn/123456789012/orders", "cn-north-1"),
        ("http://sqs.eu-west-3.localhost.localstack.cloud:4566/000000000000/orders", "eu-west-3"),
        ("http://localhost:4566/queue/eu-west-3/000000000000/orders", "eu-west-3"),
        ("http://localhost:4566/000000000000/orders", None),
        ("http://127.0.0.1:9324/orders", None),
        ("http://sqs:4566/000000000000/orders", None),
        ("http://queue:9324/000000000000/orders", None),
        ("http://sqs.internal:9324/000000000000/orders", None),
        ("https://[::1]:4566/000000000000/orders", None),
        ("https://[::1", None),
        ("", None),
    ],
)
def test_a_url_says_its_region_or_none(url: str, region: str | None) -> None:
    """Every form of AWS's endpoints is known; a host that names no region is not guessed at."""
    assert region_of_url(url) == region


@pytest.mark.parametrize(
    ("given", "name", "arn"),
    [
        ("orders", "orders", ""),
        ("orders.fifo", "orders.fifo", ""),
        ("http://localhost:9324/orders/", "orders", ""),
        ("http://localhost:9324/000000000000/orders", "orders", ""),
        (VPC, "orders", "arn:aws:sqs:us-east-1:123456789012:orders"),
        (
            "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/orders",
            "orders",
            "arn:aws-cn:sqs:cn-north-1:123456789012:orders",
        ),
        (
            "https://us-gov-west-1.queue.amazonaws.com/123456789012/orders",
            "orders",
            "arn:aws-us-gov:sqs:us-gov-west-1:123456789012:orders",
        ),
        (
            "arn:aws-us-gov:sqs:us-gov-east-1:123456789012:orders.fifo",
            "orders.fifo",
            "arn:aws-us-gov:sqs:us-gov-east-1:123456789012:orders.fifo",
        ),
        ("arn:aws:sqs:elasticmq:000000000000:orders", "orders", "arn:aws:sqs:elasticmq:000000000000:orders"),
    ],
)
def test_the_name_and_the_arn_are_found(given: str, name: str, arn: str) -> None:
    """The ARN, which goes into a policy, follows from a URL of AWS as well."""
    address = address_of(given)
    assert (address.name, address.arn) == (name, arn)


@pytest.mark.parametrize(
    "wrong",
    [
        "arn:",
        "arn:aws:sns:us-east-1:1:orders",
        "arn:aws:sqs:orders",
        "arn:aws:sqs:us-east-1:1:",
        "https://sqs.us-east-1.amazonaws.com/",
        "https://sqs.us-east-1.amazonaws.com",
        "https://[::1/orders",
    ],
)
def test_what_names_no_queue_is_refused(wrong: str) -> None:
    """The text shows the form."""
    with pytest.raises(ConfigurationError, match=r"not the (ARN|URL) of a queue"):
        address_of(wrong)

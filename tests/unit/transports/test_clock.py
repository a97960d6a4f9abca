"""A refusal that comes from the clock is told from one that does not."""

from email.utils import formatdate

import pytest
from botocore.exceptions import ClientError

from postroom.errors import AccessDenied
from postroom.transports.aws.clock import Skew, skew_of
from postroom.transports.aws.errors import Subject, clock_skew, translate

NOW = 1_795_770_000.0
EXPIRED = "Signature expired: 20261127T100000Z is now earlier than 20261127T101500Z (20261127T103000Z - 15 min.)"
EARLY = "Signature not yet current: 20261127T103000Z is still later than 20261127T100500Z (20261127T100000Z + 5 min.)"


def date(ahead: float) -> str:
    """Return a Date header of a server with a clock that is so far ahead."""
    return formatdate(NOW + ahead, usegmt=True)


@pytest.mark.parametrize(
    ("code", "said", "header", "skew"),
    [
        ("InvalidSignatureException", EXPIRED, None, Skew(1800.0)),
        ("SignatureDoesNotMatch", EARLY, None, Skew(-1800.0)),
        ("SignatureDoesNotMatch", EXPIRED, date(900), Skew(900.0)),
        ("InvalidSignatureException", "Signature expired", None, Skew(None)),
        ("RequestTimeTooSkewed", "The difference is too large.", date(-3600), Skew(-3600.0)),
        ("RequestTimeTooSkewed", "The difference is too large.", None, Skew(None)),
        ("RequestExpired", "", "not a date", Skew(None)),
        ("RequestExpired", "99999999T999999Z 99999999T999999Z", None, Skew(None)),
        ("SignatureDoesNotMatch", "The signature does not match.", date(600), Skew(600.0)),
        ("AuthFailure", "", date(-600), Skew(-600.0)),
        ("SignatureDoesNotMatch", "The signature does not match.", date(60), None),
        ("SignatureDoesNotMatch", "The signature does not match.", None, None),
        ("AccessDenied", "not authorized to perform: sqs:ReceiveMessage", date(600), None),
        ("ExpiredToken", "The security token has expired.", date(600), None),
        ("QueueDoesNotExist", "", date(600), None),
    ],
)
def test_the_clock_is_recognised(code: str, said: str, header: str | None, skew: Skew | None) -> None:
    """By the code, by what the answer says, or by a Date header that is minutes away."""
    assert skew_of(code, said, header, NOW) == skew


def refusal(code: str, said: str, headers: dict[str, str] | None = None) -> ClientError:
    """Return what botocore raises."""
    metadata = {"HTTPStatusCode": 403, "HTTPHeaders": headers or {}}
    response = {"Error": {"Code": code, "Message": said}, "ResponseMetadata": metadata}
    return ClientError(response, "ReceiveMessage")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (refusal("InvalidSignatureException", EXPIRED), "differs from the server's by 1800 s (it is behind)"),
        (refusal("SignatureDoesNotMatch", EARLY), "differs from the server's by 1800 s (it is ahead)"),
        (refusal("RequestTimeTooSkewed", "Too large."), "check this machine's clock; calls succeed again once"),
    ],
)
def test_the_advice_is_about_the_clock(error: ClientError, advice: str) -> None:
    """It is worth another try, and nothing in it speaks of IAM."""
    told = translate(error, operation="ReceiveMessage", subject=Subject(text="queue 'orders'"))
    assert isinstance(told, AccessDenied)
    assert told.retryable
    assert advice in str(told)
    assert "check this machine's clock" in str(told)
    assert not {"allow", "sts", "sso", "role"} & set(str(told).replace("`", " ").split())


def test_only_a_known_difference_is_made_use_of() -> None:
    """What is no refusal for the clock, or does not say how far off it is, gives nothing."""
    assert clock_skew(refusal("InvalidSignatureException", EXPIRED)) == 1800.0
    assert clock_skew(refusal("RequestTimeTooSkewed", "")) is None
    assert clock_skew(refusal("AccessDenied", "")) is None
    assert clock_skew(OSError()) is None

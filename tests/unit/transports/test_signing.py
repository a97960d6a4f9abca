"""The hot path's signatures are botocore's, byte for byte."""

import datetime as dt
import json

import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given, settings
from hypothesis import strategies as st

from postroom.errors import ConfigurationError
from postroom.transports.aws.signing import CONTENT_TYPE, Scope, Signer
from unit.transports.fake_sqs import sign_as_botocore

REGIONS = [
    "us-east-1",
    "eu-central-1",
    "cn-north-1",
    "cn-northwest-1",
    "us-gov-west-1",
    "us-iso-east-1",
    "ap-southeast-7",
]
HOSTS = [
    "sqs.{region}.amazonaws.com",
    "sqs-fips.{region}.amazonaws.com",
    "sqs.{region}.api.aws",
    "sqs-fips.{region}.api.aws",
    "sqs.{region}.amazonaws.com.cn",
    "vpce-0a1b-2c3d.sqs.{region}.vpce.amazonaws.com",
    "localhost:4566",
    "127.0.0.1:9324",
    "[::1]:9324",
]
OPERATIONS = ["ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"]

printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60)
texts = st.text(max_size=200)
bodies = st.one_of(
    st.dictionaries(texts, st.one_of(texts, st.integers(), st.lists(texts, max_size=3)), max_size=4).map(
        lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ),
    st.binary(max_size=300),
)
moments = st.integers(min_value=0, max_value=4_102_444_800)


def parts_of(request: bytes) -> tuple[dict[str, str], bytes]:
    """Split a request into its headers, names in lower case, and its body."""
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    assert lines[0] == "POST / HTTP/1.1"
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}, body


@settings(max_examples=300, deadline=None)
@given(
    access_key=printable,
    secret_key=texts.filter(bool),
    token=st.one_of(st.none(), printable),
    host=st.sampled_from(HOSTS),
    region=st.sampled_from(REGIONS),
    operation=st.sampled_from(OPERATIONS),
    body=bodies,
    now=moments,
)
def test_signature_equals_that_of_botocore(
    *,
    access_key: str,
    secret_key: str,
    token: str | None,
    host: str,
    region: str,
    operation: str,
    body: bytes,
    now: int,
) -> None:
    """Any credentials, host, region, moment and body are signed as botocore signs them."""
    secret_key = secret_key.encode("utf-8", "replace").decode()
    credentials = ReadOnlyCredentials(access_key, secret_key, token)
    host = host.format(region=region)
    signer = Signer(Scope(host=host, region=region, service="sqs", user_agent="postroom/0"), credentials)

    head, sent = parts_of(signer.request(operation, body, now=now))

    request = AWSRequest("POST", f"https://{host}/", headers={"X-Amz-Target": f"AmazonSQS.{operation}"}, data=body)
    request.headers["Content-Type"] = CONTENT_TYPE
    assert head["x-amz-date"] == f"{dt.datetime.fromtimestamp(now, dt.UTC):%Y%m%dT%H%M%SZ}"
    assert head["authorization"] == sign_as_botocore(request, credentials, date=head["x-amz-date"], region=region)
    assert sent == body
    assert head["content-length"] == str(len(body))
    assert head.get("x-amz-security-token") == token
    assert head["host"] == host


def test_one_signer_signs_across_seconds_and_days() -> None:
    """The cached key and dates follow the clock, back and forth over midnight."""
    credentials = ReadOnlyCredentials("AKID", "secret", "token")
    signer = Signer(Scope(host="localhost:1", region="us-east-1", service="sqs", user_agent="postroom/0"), credentials)
    for now in (86_399, 86_400, 86_400, 86_401, 86_399):
        head, _ = parts_of(signer.request("ReceiveMessage", b"{}", now=now))
        request = AWSRequest("POST", "http://localhost:1/", data=b"{}")
        request.headers["X-Amz-Target"] = "AmazonSQS.ReceiveMessage"
        request.headers["Content-Type"] = CONTENT_TYPE
        date = f"{dt.datetime.fromtimestamp(now, dt.UTC):%Y%m%dT%H%M%SZ}"
        expected = sign_as_botocore(request, credentials, date=date, region="us-east-1")
        assert head["authorization"] == expected


def test_equal_receives_are_signed_once_a_second() -> None:
    """A busy queue is asked a thousand times a second. Other requests are not kept, and no more than a hundred."""
    credentials = ReadOnlyCredentials("AKID", "secret", None)
    signer = Signer(Scope(host="localhost:1", region="us-east-1", service="sqs", user_agent="postroom/0"), credentials)
    first = signer.request("ReceiveMessage", b"{}", now=100)
    assert signer.request("ReceiveMessage", b"{}", now=100) is first
    assert signer.request("ReceiveMessage", b"[]", now=100) != first
    assert signer.request("ReceiveMessage", b"{}", now=101) != first
    assert signer.request("ReceiveMessage", b"{}", now=100) is not first
    own = signer.request("ReceiveMessage", b'{"ReceiveRequestAttemptId":"1"}', now=100)
    assert signer.request("ReceiveMessage", b'{"ReceiveRequestAttemptId":"1"}', now=100) is not own
    deleted = signer.request("DeleteMessageBatch", b"{}", now=100)
    assert deleted != first
    assert signer.request("DeleteMessageBatch", b"{}", now=100) is not deleted
    many = [b"%d" % number for number in range(1_000)]
    signed = [signer.request("ReceiveMessage", body, now=100) for body in many]
    kept = [
        signer.request("ReceiveMessage", body, now=100) is before for body, before in zip(many, signed, strict=True)
    ]
    assert sum(kept) < 100


@pytest.mark.parametrize("token", ["a\r\nX-Evil: 1", "a\nb", "a b  c", " a", "a\t", "ä"])
def test_credentials_that_fit_no_header_are_refused(token: str) -> None:
    """A token with a line break, or with what a proxy might fold, is never sent."""
    scope = Scope(host="localhost:1", region="us-east-1", service="sqs", user_agent="postroom/0")
    with pytest.raises(ConfigurationError, match="characters that no header may"):
        Signer(scope, ReadOnlyCredentials("AKID", "secret", token))

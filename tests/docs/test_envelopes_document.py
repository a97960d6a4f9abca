"""The code in docs/envelopes.md runs as it stands, on messages as AWS writes them."""

import base64
import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from postroom import Consumer, ContextError, DecodeError, Settlement, payloads
from postroom.integrations.claim_check import ClaimCheck
from postroom.testing import deliver, run_virtual
from support.envelopes import S3_TEST, S3_THROUGH_EVENTBRIDGE, TOPIC, message, s3, sns

TEXT = (Path(__file__).parents[2] / "docs" / "envelopes.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """All blocks, in order, in one namespace."""
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        exec(compile(block, "envelopes.md", "exec"), found)  # noqa: S102 - the document's own code is tested
    return found


def handled(consumer: Consumer[Any, Any], body: Any, **attributes: str) -> Any:
    """Deliver a body; what the handler is given is not of interest."""
    if consumer._handler is None:

        @consumer.handler
        async def handle(body: str, ctx: Any) -> None: ...

    return run_virtual(deliver(consumer, body, attributes=attributes))


def test_the_first_example_takes_raw_wrapped_and_packed_bodies(names: dict[str, Any]) -> None:
    """In any combination."""
    packed = base64.b64encode(gzip.compress(b"x")).decode()
    for body in (sns("x", tenantId="acme"), sns(packed, tenantId="acme")):
        assert handled(names["orders"], body).context == names["Tenant"]("acme")
    assert handled(names["orders"], packed, tenantId="acme").error is None


def test_the_topic_is_a_context(names: dict[str, Any]) -> None:
    """As the pattern allows."""
    assert handled(names["audit"], sns("x")).context == names["Source"](TOPIC)


def test_uploads_are_indexed_by_tenant(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """And the test event is dropped."""
    assert handled(names["uploads"], s3("acme/my+file.csv")).error is None
    assert capsys.readouterr().out == "acme ObjectCreated:Put amzn-s3-demo-bucket acme/my file.csv\n"
    assert handled(names["uploads"], S3_TEST).settlement is Settlement.ACKED


def test_a_key_without_a_tenant_is_refused(names: dict[str, Any]) -> None:
    """Its uploader chooses it."""
    for key in ("order.csv", "acme/", "%2Facme/x", "../x", "a%0Ab/x"):
        with pytest.raises(ContextError, match="does not begin with a tenant"):
            raise handled(names["uploads"], s3(key)).error


def test_the_tenant_of_an_event_stands_in_its_detail(names: dict[str, Any]) -> None:
    """It is checked as an attribute is, and what is not there is named."""
    event = {**S3_THROUGH_EVENTBRIDGE, "detail": {"tenantId": "acme"}}
    assert handled(names["events"], event, tenantId="forged").context == names["Tenant"]("acme")
    for detail, text in (({}, "missing required field 'tenantId'"), ({"tenantId": "a\n"}, "not a safe id")):
        with pytest.raises(ContextError, match=text):
            raise handled(names["events"], {**event, "detail": detail}, tenantId="forged").error


def test_a_function_chooses_among_envelopes(names: dict[str, Any]) -> None:
    """S3, EventBridge and plain messages, through a topic or not."""
    unwrap = names["unwrap_any"]
    for body in (s3("a/b"), sns(s3("a/b"))):
        assert unwrap(message(body)).attributes["key"] == "a/b"
    for body in (S3_THROUGH_EVENTBRIDGE, sns(S3_THROUGH_EVENTBRIDGE)):
        assert unwrap(message(body)).attributes["detail-type"] == "Object Created"
    assert handled(names["mixed"], sns("x", tenantId="acme")).context == names["Tenant"]("acme")
    assert handled(names["mixed"], "x", tenantId="acme").context == names["Tenant"]("acme")


def test_the_claim_check_example_reads_from_both_buckets(names: dict[str, Any]) -> None:
    """Nothing is opened yet."""
    assert (
        repr(names["bodies"]) == "ClaimCheck('amzn-s3-demo-bucket', buckets=['amzn-s3-demo-bucket', 'legacy-bodies'])"
    )
    assert isinstance(names["bodies"], ClaimCheck)


def test_a_step_of_ones_own_unpacks(names: dict[str, Any]) -> None:
    """And refuses what it cannot read."""
    assert handled(names["secret"], "v1:x", tenantId="acme").error is None
    assert isinstance(handled(names["secret"], "x", tenantId="acme").error, DecodeError)


def test_every_step_of_the_table_exists() -> None:
    """Under the name that it has there."""
    [table] = re.findall(r"\| step \|.*?\n\n", TEXT, flags=re.DOTALL)
    steps = re.findall(r"^\| `(\w+)", table, flags=re.MULTILINE)
    assert len(steps) == 9
    assert [step for step in steps if not hasattr(payloads, step)] == ["ClaimCheck"]

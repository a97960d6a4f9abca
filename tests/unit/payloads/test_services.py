"""What SNS, EventBridge, S3, SES and CloudEvents write is read, and what they never write is refused."""

import base64
import gzip
import json
import zlib
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from cloudevents.core.bindings import amqp, http, kafka
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from postroom.errors import ConfigurationError, DecodeError, Drop, MissingAttribute, PayloadError, ValidationError
from postroom.message import Message, MessageAttribute
from postroom.payloads import (
    Base64Body,
    GzipBody,
    S3Event,
    S3EventDetail,
    SnsEnvelope,
    context_from_attributes,
    decoder_for,
    unwrap_cloudevents,
    unwrap_eventbridge,
    unwrap_s3,
    unwrap_ses,
    unwrap_sns,
)
from support.envelopes import (
    CLOUD_EVENT,
    S3_REMOVED,
    S3_TEST,
    S3_THROUGH_EVENTBRIDGE,
    SES_BOUNCE,
    SES_RECEIVED,
    SES_SENT,
    TOPIC,
    message,
    s3,
    sns,
)

SECRET = "s3cr3t-4711"


# -- SNS --------------------------------------------------------------------------------------------------------------


def test_sns_says_which_topic_and_message_it_was() -> None:
    """Beside the attributes of the sender, and not to be overwritten by them."""
    inner = SnsEnvelope(topics=[TOPIC])(message(sns("x", **{"tenantId": "acme", "sns.TopicArn": "forged"})))
    assert inner.body == "x"
    assert dict(inner.attributes) == {
        "tenantId": "acme",
        "sns.TopicArn": TOPIC,
        "sns.MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "sns.Subject": "My First Message",
    }


@pytest.mark.parametrize(
    "body",
    ["plain text", "{not json", '{"order_id": "1"}', "[]", '{"note": "\\"Notification\\" \\"TopicArn\\""}'],
)
def test_raw_and_wrapped_messages_mix(body: str) -> None:
    """A raw one stays as it is, but cannot claim a topic."""
    raw = message(body, tenantId="acme", **{"sns.TopicArn": TOPIC})
    inner = SnsEnvelope(raw=True)(raw)
    assert (inner.body, dict(inner.attributes)) == (body, {"tenantId": "acme"})
    unchanged = message(body, tenantId="acme")
    assert SnsEnvelope(raw=True)(unchanged) is unchanged
    assert SnsEnvelope(raw=True)(message(sns(body))).body == body


def test_a_broken_notification_is_not_taken_for_a_raw_message() -> None:
    """It says that it is a notification."""
    broken = {**sns("x"), "MessageAttributes": 5}
    with pytest.raises(PayloadError, match="not an SNS notification"):
        SnsEnvelope(raw=True)(message(broken))


def test_another_topic_is_refused() -> None:
    """Also where raw messages are accepted; and a raw one where they are not."""
    other = SnsEnvelope(topics=[TOPIC + "-test"], raw=True)
    with pytest.raises(ValidationError, match=r"of a topic that SnsEnvelope\(topics=...\) does not name") as caught:
        other(message(sns(SECRET)))
    assert SECRET not in str(caught.value)
    with pytest.raises(PayloadError, match=r"SnsEnvelope\(raw=True\)"):
        SnsEnvelope()(message("{}"))


@pytest.mark.parametrize("kind", ["SubscriptionConfirmation", "UnsubscribeConfirmation"])
@pytest.mark.parametrize("step", [unwrap_sns, SnsEnvelope(raw=True), unwrap_s3])
def test_what_sns_says_of_a_subscription_is_told(step: Any, kind: str) -> None:
    """A queue of another account gets it. It is no raw message; its token stays out of the log."""
    with pytest.raises(ValidationError, match=r"SNS .* subscription .* SubscribeURL") as caught:
        step(message({**sns("You have chosen ..."), "Type": kind, "Token": SECRET, "SubscribeURL": SECRET}))
    assert SECRET not in str(caught.value)
    assert "raw" not in str(caught.value)


@pytest.mark.parametrize("step", [unwrap_eventbridge, unwrap_s3, unwrap_ses, unwrap_cloudevents])
def test_a_notification_without_its_step_says_so(step: Any) -> None:
    """The most common mistake of all."""
    with pytest.raises(PayloadError, match="it is an SNS notification: unwrap_sns belongs in front"):
        step(message(sns("x")))


def test_a_sender_says_nothing_in_the_name_of_sns() -> None:
    """Not where SNS itself says nothing either."""
    forged = sns("x", **{"sns.TopicArn": TOPIC, "tenantId": "acme"})
    bare = {name: forged[name] for name in ("Type", "Message", "MessageAttributes")}
    for step, body in ((SnsEnvelope(), bare), (unwrap_sns, forged)):
        assert dict(step(message(body)).attributes) == {"tenantId": "acme"}, step


class Named(NamedTuple):
    """A context."""

    tenant_id: str


def test_names_out_of_an_envelope_are_shown_as_far_as_they_are_names() -> None:
    """SQS takes ten, and checks them. The keys of a body are as many and as odd as its sender likes."""
    odd = {f"{SECRET} {SECRET}": "x", "é": "x", "x" * 257: "x"}
    received = unwrap_sns(message(sns("x", **odd, **{f"n{number:03}": "x" for number in range(300)})))
    resolve = context_from_attributes(Named)
    for look in (lambda: resolve(received), lambda: received.attributes["tenantId"]):
        with pytest.raises(MissingAttribute, match=r"'n019', and 283 more\)") as caught:
            look()
        assert SECRET not in str(caught.value)
    only = unwrap_sns(message(sns("x", **odd)))
    with pytest.raises(MissingAttribute, match=r"\(attributes of this message: 3, not shown\)"):
        resolve(only)


@pytest.mark.parametrize(
    "topics",
    [
        TOPIC,
        [],
        ["orders"],
        [5],
        [TOPIC.replace("sns", "sqs")],
        [TOPIC + ":22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324"],
        [TOPIC + " "],
        ["arn:aws:sns:*:*:orders"],
    ],
)
def test_topics_are_arns(topics: Any) -> None:
    """One text is a common mistake, and so are the ARN of the queue or of the subscription, and an asterisk."""
    with pytest.raises(ConfigurationError, match=r"SnsEnvelope\(topics=...\) takes"):
        SnsEnvelope(topics=topics)


# -- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoded", "key"),
    [("acme/my+file%28final%29.txt", "acme/my file(final).txt"), ("a%2Bb.txt", "a+b.txt"), ("%E2%82%AC.csv", "€.csv")],
)
def test_the_key_of_an_object_is_decoded(encoded: str, key: str) -> None:
    """In the payload and in the attribute."""
    received = unwrap_s3(message(s3(encoded)))
    assert received.attributes["key"] == key
    event: S3Event = decoder_for(S3Event)(received)
    [record] = event.records
    assert (record.key, record.bucket, record.event_name) == (key, "amzn-s3-demo-bucket", "ObjectCreated:Put")
    assert (record.s3.object.size, record.s3.object.version_id) == (1024, "096fKKXTRTtl3on89fVO.nfljtsv6qko")
    assert not event.is_test


def test_attributes_are_what_all_records_agree_on() -> None:
    """Of two keys there is none."""
    received = unwrap_s3(message(s3("a", "b")))
    assert dict(received.attributes) == {
        "bucket": "amzn-s3-demo-bucket",
        "eventName": "ObjectCreated:Put",
        "eventTime": "1970-01-01T00:00:00.000Z",
        "awsRegion": "us-west-2",
    }


def test_a_removal_has_no_size() -> None:
    """S3 leaves size and tag out."""
    [record] = decoder_for(S3Event)(message(S3_REMOVED)).records
    assert (record.key, record.s3.object.size) == ("acme/old.txt", None)


def test_the_test_event_is_known() -> None:
    """As a payload it has no records; as an envelope it is dropped."""
    event: S3Event = decoder_for(S3Event)(message(S3_TEST))
    assert (event.is_test, event.records) == (True, ())
    with pytest.raises(Drop, match="s3:TestEvent"):
        unwrap_s3(message(S3_TEST))


@pytest.mark.parametrize("body", ["{}", '{"Records": []}', '{"Event": "s3:Other"}', "[]", "", '{"Records": [{}]}'])
def test_what_is_no_s3_event_is_refused(body: str) -> None:
    """An object without records is no work done, and that is said."""
    with pytest.raises(PayloadError):
        decoder_for(S3Event)(message(body))
    with pytest.raises(PayloadError, match="not an S3 notification"):
        unwrap_s3(message(body))


@pytest.mark.parametrize("read", [decoder_for(S3Event), unwrap_s3])
def test_an_object_that_is_no_s3_event_lacks_records(read: Any) -> None:
    """The type's check says it in its own words, which quote nothing."""
    with pytest.raises(ValidationError, match="neither Records nor s3:TestEvent"):
        read(message(S3_THROUGH_EVENTBRIDGE))


def test_an_s3_event_through_eventbridge_is_typed() -> None:
    """There the key is not encoded."""
    inner = unwrap_eventbridge(message(S3_THROUGH_EVENTBRIDGE))
    detail: S3EventDetail = decoder_for(S3EventDetail)(inner)
    assert (detail.bucket.name, detail.object.key, detail.reason) == (
        "amzn-s3-demo-bucket1",
        "acme/a b+c.txt",
        "PutObject",
    )
    assert (detail.object.version_id, detail.request_id) == ("IYV3p45BT0ac8hjHg1houSdS1a.Mro8e", "N4N7GDK58NMKJ12R")


# -- SES --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "account"),
    [(SES_BOUNCE, "Bounce", "123456789012"), (SES_SENT, "Send", "123456789012"), (SES_RECEIVED, "Received", None)],
)
def test_ses_says_what_became_of_a_mail(body: dict[str, Any], kind: str, account: str | None) -> None:
    """Through a topic, as it always comes; the body stays."""
    inner = unwrap_ses(unwrap_sns(message(sns(body))))
    assert inner.attributes["type"] == kind
    assert inner.attributes.get("sendingAccountId") == account
    assert inner.attributes["source"] == "sender@example.com"
    assert json.loads(inner.body) == body


def test_the_tags_of_a_mail_are_attributes() -> None:
    """Where a sender writes the tenant. They cannot overwrite what SES says; one with two values is none."""
    attributes = unwrap_ses(message(SES_SENT)).attributes
    assert attributes["tenantId"] == "acme"
    assert attributes["type"] == "Send"
    assert "campaign" not in attributes


@pytest.mark.parametrize(
    "body",
    [
        "Successfully validated SNS topic for Amazon SES event publishing.",
        {
            "notificationType": "AmazonSnsSubscriptionSucceeded",
            "message": "You have successfully subscribed your Amazon SNS topic to receive 'Bounce' notifications",
        },
    ],
)
def test_what_ses_says_once_is_dropped(body: Any) -> None:
    """When its notifications are switched on: it is about no mail."""
    with pytest.raises(Drop, match="Amazon SES"):
        unwrap_ses(unwrap_sns(message(sns(body))))


def test_a_tag_says_nothing_in_the_name_of_ses() -> None:
    """Not where SES itself says nothing either."""
    mail = {"tags": {"sendingAccountId": ["forged"], "tenantId": ["acme"]}}
    assert dict(unwrap_ses(message({"eventType": "Send", "mail": mail})).attributes) == {
        "type": "Send",
        "tenantId": "acme",
    }


@pytest.mark.parametrize("body", ["{}", '{"mail": {}}', "x", '{"notificationType": "Bounce"}'])
def test_what_is_not_of_ses_is_refused(body: str) -> None:
    """With what it lacks."""
    with pytest.raises(PayloadError, match="not a notification of Amazon SES"):
        unwrap_ses(message(body))


# -- CloudEvents ------------------------------------------------------------------------------------------------------


def test_the_sample_of_the_specification_is_read() -> None:
    """Data character by character, attributes as text, null as absent."""
    text = json.dumps(CLOUD_EVENT).replace('{"order_id": "1"}', '{"amount":  1.10000000000000000001}')
    inner = unwrap_cloudevents(message(text, outer="x"))
    assert inner.body == '{"amount":  1.10000000000000000001}'
    assert dict(inner.attributes) == {
        "specversion": "1.0",
        "type": "com.github.pull_request.opened",
        "source": "https://github.com/cloudevents/spec/pull",
        "subject": "123",
        "id": "A234-1234-1234",
        "time": "2018-04-05T17:31:00Z",
        "comexampleextension1": "value",
        "comexampleothervalue": "5",
        "datacontenttype": "application/json",
    }


def event_of(data: Any, kind: str | None = "application/json") -> CloudEvent:
    """Make an event with the SDK."""
    attributes: dict[str, Any] = {
        "id": "1",
        "source": "/orders",
        "type": "order.created",
        "specversion": "1.0",
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "tenantid": "acme",
    }
    if kind is not None:
        attributes["datacontenttype"] = kind
    return CloudEvent(attributes=attributes, data=data)


SAID = {
    "id": "1",
    "source": "/orders",
    "type": "order.created",
    "specversion": "1.0",
    "time": "2026-01-01T00:00:00Z",
    "tenantid": "acme",
}


@pytest.mark.parametrize(
    ("data", "kind", "body"),
    [
        ({"order_id": "1"}, "application/json", {"order_id": "1"}),
        ("<a/>", "application/xml", "<a/>"),
        (b'{"order_id": "1"}', "application/json", {"order_id": "1"}),
    ],
)
def test_what_the_sdk_writes_in_structured_mode_is_read(data: Any, kind: str, body: Any) -> None:
    """JSON, text, and bytes, which travel in base64."""
    written = http.to_structured(event_of(data, kind), JSONFormat())
    inner = unwrap_cloudevents(message(written.body.decode()))
    assert {name: value for name, value in inner.attributes.items() if name != "datacontenttype"} == SAID
    assert (json.loads(inner.body) if isinstance(body, dict) else inner.body) == body


def test_what_the_sdk_writes_in_binary_mode_is_read() -> None:
    """With the prefixes of HTTP, Kafka and AMQP; other attributes do not mix with them."""
    event = event_of({"order_id": "1"})
    by_http = http.to_binary(event, JSONFormat())
    by_kafka = kafka.to_binary(event, JSONFormat())
    by_amqp = amqp.to_binary(event, JSONFormat())
    assert any(name.startswith("cloudEvents_") for name in by_amqp.application_properties)
    times = {"cloudEvents_time": "2026-01-01T00:00:00Z"}  # AMQP has a type for times
    variants: list[tuple[dict[str, str], bytes]] = [
        (by_http.headers, by_http.body),
        ({name: value.decode() for name, value in by_kafka.headers.items()}, by_kafka.value),
        ({**by_amqp.application_properties, **times, "content-type": "application/json"}, by_amqp.application_data),
    ]
    for headers, body in variants:
        received = message(body.decode(), other="x", **headers)
        inner = unwrap_cloudevents(received)
        assert json.loads(inner.body) == {"order_id": "1"}
        assert dict(inner.attributes) == {**SAID, "datacontenttype": "application/json"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"id": ""}, "it lacks id"),
        ({"type": None}, "it lacks type"),
        ({"specversion": "0.3"}, "another version than 1.0"),
        ({"source": {"a": SECRET}}, r"\$\.source: expected a text"),
        ({SECRET: [1]}, r"\$\[\.\.\.\]: expected a text"),
        ({"data": None, "data_base64": "?"}, r"\$\.data_base64: not the base64 of UTF-8 text"),
        ({"data": None, "data_base64": "/w=="}, r"\$\.data_base64: not the base64 of UTF-8 text"),
    ],
)
def test_what_is_no_cloud_event_is_refused(change: dict[str, Any], text: str) -> None:
    """It says what is missing or wrong, and quotes nothing."""
    event = {**CLOUD_EVENT, **change}
    if "data_base64" in change:
        del event["data"]
    with pytest.raises(ValidationError, match=text) as caught:
        unwrap_cloudevents(message(event))
    assert SECRET not in str(caught.value)


def test_a_batch_of_cloud_events_is_refused() -> None:
    """One message is one event."""
    with pytest.raises(PayloadError, match="not a CloudEvent"):
        unwrap_cloudevents(message([CLOUD_EVENT]))


# -- packed bodies ----------------------------------------------------------------------------------------------------


def packed(text: str) -> str:
    """Pack a text as a sender does."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def test_packed_bodies_are_unpacked() -> None:
    """Base64 with line breaks and without padding too; a gzip of several members."""
    assert Base64Body()(message(base64.encodebytes("grün".encode() * 40).decode())).body == "grün" * 40
    assert Base64Body()(message("YQ")).body == "a"
    assert GzipBody()(message(packed('{"a": 1}'))).body == '{"a": 1}'
    both = base64.b64encode(gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0)).decode()
    assert GzipBody()(message(both)).body == "ab"


@pytest.mark.parametrize("raw", [False, True])
def test_a_byte_order_mark_hides_no_packing(raw: bool) -> None:
    """It carries no meaning in front of base64 either, and is part of a text that stands for itself."""
    assert Base64Body(raw=raw)(message("\ufeffYQ==")).body == "a"
    assert GzipBody(raw=raw)(message("\ufeff" + packed("a"))).body == "a"
    assert Base64Body(raw=True)(message("\ufeff{}")).body == "\ufeff{}"


def test_plain_bodies_pass_where_they_are_expected() -> None:
    """``raw=True`` takes them as they are."""
    plain = message('{"a": 1}')
    assert Base64Body(raw=True)(plain) is plain
    assert GzipBody(raw=True)(plain) is plain


def test_a_bomb_is_refused_before_it_takes_the_memory() -> None:
    """A body of one megabyte may stand for a gigabyte."""
    bomb = packed("0" * 1_000_000)
    assert len(bomb) < 2_000
    assert len(GzipBody(most=1_000_000)(message(bomb)).body) == 1_000_000
    with pytest.raises(DecodeError, match=r"larger than GzipBody\(most=999999\)"):
        GzipBody(most=999_999)(message(bomb))
    several = base64.b64encode(gzip.compress(b"0" * 600) * 3).decode()
    with pytest.raises(DecodeError, match="larger than"):
        GzipBody(most=1_000)(message(several))


def test_a_gzip_of_very_many_members_is_unpacked_in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message must not stop the event loop for all tenants: each member is given a part, not all that follows."""
    members, handed = 2_000, 0

    class Counted:
        def __init__(self, wbits: int) -> None:
            self._real = decompressobj(wbits)

        def decompress(self, data: Any, most: int) -> bytes:
            nonlocal handed
            handed += len(data)
            return self._real.decompress(data, most)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    decompressobj = zlib.decompressobj
    monkeypatch.setattr("postroom.payloads.contents.zlib.decompressobj", Counted)
    member = gzip.compress(b"0" * 450, mtime=0)
    assert GzipBody()(message(base64.b64encode(member * members).decode())).body == "0" * 450 * members
    assert handed <= 4_096 * members


@pytest.mark.parametrize(
    ("step", "body", "text"),
    [
        (Base64Body(), "{}", "the body is not base64"),
        (Base64Body(), "grün", "the body is not base64"),
        (Base64Body(), "", "the body is not base64"),
        (Base64Body(), "/w==", "no UTF-8 text"),
        (GzipBody(), "{}", "not the base64 of a gzip"),
        (GzipBody(), "YQ==", "something else than a whole gzip"),
        (GzipBody(), packed("abc")[:-12], "something else than a whole gzip"),
        (GzipBody(raw=True), "H4sI!", "not the base64 of a gzip"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_not_packed_so_is_refused(step: Any, body: str, text: str) -> None:
    """It is said what it is not."""
    with pytest.raises(DecodeError, match=text) as caught:
        step(message(body))
    assert caught.value.message_id == "m-1"
    assert caught.value.__context__ is None


def test_a_bound_is_a_number() -> None:
    """At least one byte."""
    with pytest.raises(ConfigurationError, match=r"GzipBody\(most=...\) takes a whole number"):
        GzipBody(most=0)


def test_a_byte_order_mark_is_skipped_in_envelopes_too() -> None:
    """.NET writes one."""
    assert unwrap_sns(message("\ufeff" + json.dumps(sns("x")))).body == "x"
    binary = MessageAttribute(data_type="Binary", binary_value=b"x")
    assert (
        unwrap_cloudevents(
            Message(id="1", body="\ufeff" + json.dumps(CLOUD_EVENT), message_attributes={"b": binary})
        ).body
        == '{"order_id": "1"}'
    )

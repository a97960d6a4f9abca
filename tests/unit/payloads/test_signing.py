"""A signed context is believed; one that anybody could have written is not."""

import asyncio
import copy
import dataclasses
import hashlib
import hmac
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from postroom.errors import ConfigurationError, ContextError, MissingAttribute
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.payloads import KeyRing, context_from_attributes, sign, signed
from postroom.payloads.signing import SIGNATURE

OLD, NEW = b"\x01" * 32, b"\x02" * 32
NOW = 1_800_000_000.0
NAMES = ("tenantId", "region")
VECTOR = "v1:2026-11:1800000060:eae99d8a97bf1ca8bd08b0e38d5ea8c94782097e6e7df0a695647c9f84109701"


@dataclasses.dataclass(frozen=True)
class Tenant:
    """The context."""

    tenant_id: str
    region: str


def tenant_of(message: Message) -> Tenant:
    """Resolve the context by hand."""
    return Tenant(message.attributes["tenantId"], message.attributes["region"])


def text(value: str) -> MessageAttribute:
    """Make a String attribute."""
    return MessageAttribute(string_value=value)


def outgoing(**changes: Any) -> OutgoingMessage:
    """Make a message to sign."""
    attributes = {"tenantId": text("tenant-a"), "region": text("eu-west-1"), "trace": text("t-1")}
    return msgspec.structs.replace(OutgoingMessage(body='{"amount": 1}', message_attributes=attributes), **changes)


def received(sent: OutgoingMessage, **attributes: MessageAttribute | None) -> Message:
    """Make what the consumer receives, with some attributes replaced or (None) taken away."""
    merged = {**sent.message_attributes, **attributes}
    kept = {name: value for name, value in merged.items() if value is not None}
    return Message(id="m-1", body=sent.body, message_attributes=kept)


def make(message: OutgoingMessage, keys: KeyRing, **options: Any) -> OutgoingMessage:
    """Sign at NOW for the queue ``orders``."""
    return sign(message, **{"keys": keys, "queue": "orders", "attributes": NAMES, "clock": lambda: NOW, **options})


def check(resolver: Callable[[Message], Any], keys: KeyRing, **options: Any) -> Callable[[Message], Any]:
    """Verify at NOW for the queue ``orders``."""
    return signed(resolver, **{"keys": keys, "queue": "orders", "attributes": NAMES, "clock": lambda: NOW, **options})


def refuse(resolve: Callable[[Message], Any], message: Message, text: str) -> ContextError:
    """Return the error of a message, with a text that is known."""
    with pytest.raises(ContextError, match=text) as caught:
        resolve(message)
    assert caught.value.message_id == "m-1"
    return caught.value


KEYS = KeyRing({"2026-11": NEW})


def test_a_signed_message_is_resolved() -> None:
    """What was signed comes back as the context."""
    assert check(tenant_of, KEYS)(received(make(outgoing(), KEYS))) == Tenant("tenant-a", "eu-west-1")


def test_the_signature_is_what_the_documentation_says() -> None:
    """A sender in another language can make it from the description alone."""
    signature = make(outgoing(), KEYS, lifetime=60).message_attributes[SIGNATURE].string_value
    parts = [
        b"postroom signed context v1",
        b"2026-11",
        b"orders",
        b"1800000060",
        hashlib.sha256(b'{"amount": 1}').digest(),
    ]
    parts += [b"region", b"text", b"String", b"eu-west-1", b"tenantId", b"text", b"String", b"tenant-a"]
    canonical = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert signature == f"v1:2026-11:1800000060:{hmac.new(NEW, canonical, 'sha256').hexdigest()}"


def test_the_test_vector_of_the_documentation_holds() -> None:
    """The documentation's worked example, digit by digit: the canonical form does not change unnoticed."""
    signature = make(outgoing(), KEYS, lifetime=60).message_attributes[SIGNATURE].string_value
    assert signature == VECTOR


@pytest.mark.parametrize(
    "change",
    [
        {"tenantId": text("tenant-b")},
        {"region": text("us-east-1")},
        {"tenantId": None},
        {"tenantId": text("eu-west-1"), "region": text("tenant-a")},
        {"tenantId": MessageAttribute(data_type="Number", string_value="tenant-a")},
        {"tenantId": MessageAttribute(data_type="Binary", binary_value=b"tenant-a")},
        {"tenantId": MessageAttribute(data_type="String.id", string_value="tenant-a")},
        {"tenantId": text("")},
    ],
)
def test_a_changed_attribute_is_refused(change: dict[str, MessageAttribute | None]) -> None:
    """Another value, another type, swapped or missing: none of it was signed."""
    refuse(check(tenant_of, KEYS), received(make(outgoing(), KEYS), **change), "does not fit")


def test_a_changed_body_is_refused() -> None:
    """The signature of one order does not carry another one."""
    message = received(make(outgoing(), KEYS))
    refuse(check(tenant_of, KEYS), msgspec.structs.replace(message, body='{"amount": 9}'), "does not fit")
    refuse(check(tenant_of, KEYS), msgspec.structs.replace(message, body="\ud800"), "does not fit")


def test_a_message_for_another_queue_is_refused() -> None:
    """What was signed for ``orders`` says nothing in ``refunds``."""
    refuse(check(tenant_of, KEYS, queue="refunds"), received(make(outgoing(), KEYS)), "does not fit")


def test_an_expired_signature_is_refused_after_the_leeway() -> None:
    """Up to its expiry plus the clocks' difference it holds, and not a second longer."""
    message = received(make(outgoing(), KEYS, lifetime=60))
    assert check(tenant_of, KEYS, clock=lambda: NOW + 70, leeway=10.0)(message)
    refuse(check(tenant_of, KEYS, clock=lambda: NOW + 71, leeway=10.0), message, "expired 11 s ago")


def test_the_expiry_cannot_be_changed() -> None:
    """It is part of what is signed."""
    signature = make(outgoing(), KEYS, lifetime=60).message_attributes[SIGNATURE].string_value or ""
    later = signature.replace(":1800000060:", ":1900000060:")
    refuse(check(tenant_of, KEYS), received(make(outgoing(), KEYS), **{SIGNATURE: text(later)}), "does not fit")


def test_an_unsigned_message_is_refused() -> None:
    """A check that may be left out is none."""
    error = refuse(check(tenant_of, KEYS), received(outgoing()), "takes signed messages only")
    assert isinstance(error, MissingAttribute)
    assert error.name == SIGNATURE
    binary = MessageAttribute(data_type="Binary", binary_value=b"v1")
    refuse(check(tenant_of, KEYS), received(outgoing(), **{SIGNATURE: binary}), "takes signed messages only")


@pytest.mark.parametrize(
    "signature",
    [
        "x",
        "v2:k:1:" + "0" * 64,
        "v1:k:01:" + "0" * 64,
        "v1:k:1:" + "0" * 63,
        "v1:k:1:" + "A" * 64,
        "v1:k:1:" + "0" * 64 + "\n",
    ],
)
def test_a_malformed_signature_is_refused(signature: str) -> None:
    """There is one spelling of a signature."""
    refuse(check(tenant_of, KEYS), received(outgoing(), **{SIGNATURE: text(signature)}), "malformed")


def test_keys_are_rotated_without_a_gap() -> None:
    """Consumers know both keys while senders change over; once the old one is gone, it is refused."""
    before, during, after = (
        KeyRing({"old": OLD}),
        KeyRing({"old": OLD, "new": NEW}, current="new"),
        KeyRing({"new": NEW}),
    )
    for sender in (before, during):
        assert check(tenant_of, during)(received(make(outgoing(), sender)))
    assert check(tenant_of, after)(received(make(outgoing(), during)))
    refuse(check(tenant_of, after), received(make(outgoing(), before)), "a key that this consumer does not have")
    assert during.current == "new"


def test_a_key_under_another_id_does_not_fit() -> None:
    """The id is signed as well: a key cannot be passed off as another one."""
    one, other = KeyRing({"a": OLD}), KeyRing({"b": OLD})
    signature = make(outgoing(), one).message_attributes[SIGNATURE].string_value or ""
    renamed = received(make(outgoing(), one), **{SIGNATURE: text(signature.replace("v1:a:", "v1:b:"))})
    refuse(check(tenant_of, other), renamed, "does not fit")


def test_the_resolver_sees_signed_attributes_only() -> None:
    """An attribute that anybody may add cannot be read by mistake."""
    seen: list[str] = []
    check(lambda message: seen.extend(message.attributes), KEYS)(received(make(outgoing(), KEYS)))
    assert seen == ["region", "tenantId"]


def test_the_names_come_from_a_resolver_that_knows_them() -> None:
    """With ``context_from_attributes`` nothing is listed twice; sender and consumer sign the same names."""
    resolver = context_from_attributes(Tenant)
    resolve = signed(resolver, keys=KEYS, queue="orders", clock=lambda: NOW)
    assert resolve.names == ("region", "tenantId", "tenant_id")
    message = make(outgoing(), KEYS, attributes=resolver.names)
    assert resolve(received(message)) == Tenant("tenant-a", "eu-west-1")
    refuse(resolve, received(message, tenant_id=text("tenant-b"), tenantId=None), "does not fit")


def test_an_async_resolver_is_checked_before_it_is_asked() -> None:
    """The wrapped resolver returns what the inner one does, an awaitable included."""

    async def look_up(message: Message) -> Tenant:
        """Resolve later."""
        return tenant_of(message)

    resolve = check(look_up, KEYS)
    assert asyncio.run(resolve(received(make(outgoing(), KEYS)))) == Tenant("tenant-a", "eu-west-1")
    refuse(resolve, received(outgoing()), "signed messages only")


def test_signing_does_not_change_the_message_that_it_was_given() -> None:
    """The signed message is another one; the rest of it is the same."""
    message = outgoing(group_id="tenant-a", delay=5)
    result = make(message, KEYS)
    assert SIGNATURE not in message.message_attributes
    assert (result.body, result.group_id, result.delay) == (message.body, "tenant-a", 5)


@pytest.mark.parametrize(
    ("keys", "current", "hint"),
    [
        ({}, None, "at least one key"),
        ({"a": b"short"}, None, "must be 32 bytes"),
        ({"a": "x" * 32}, None, "must be 32 bytes"),
        ({"a:b": OLD}, None, "a key id has"),
        ({"": OLD}, None, "a key id has"),
        ({"a": OLD, "b": NEW}, None, "say which one signs"),
        ({"a": OLD}, "b", "no key 'b'"),
    ],
)
def test_a_key_ring_that_cannot_work_is_refused(keys: Any, current: str | None, hint: str) -> None:
    """Short keys, odd ids and an unknown current key are configuration errors that do not show a key."""
    with pytest.raises(ConfigurationError, match=hint) as caught:
        KeyRing(keys, current=current)
    assert "short" not in str(caught.value)
    assert "xxx" not in str(caught.value)


def test_no_key_is_shown_or_written_down() -> None:
    """A ring shows its ids; it cannot be pickled by accident."""
    ring = KeyRing({"b": b"k" * 32, "a": b"k" * 32}, current="b")
    assert repr(ring) == "KeyRing(['a', 'b'], current='b')"
    for write_down in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="not pickled"):
            write_down(ring)


@pytest.mark.parametrize("attributes", [(), "tenantId", (SIGNATURE,)])
def test_attribute_names_that_cannot_be_signed_are_refused(attributes: Any) -> None:
    """No name, a text instead of names, or the signature itself."""
    with pytest.raises(ConfigurationError, match="signing"):
        make(outgoing(), KEYS, attributes=attributes)
    with pytest.raises(ConfigurationError, match="signing"):
        check(tenant_of, KEYS, attributes=attributes)


def test_a_resolver_that_does_not_tell_its_names_needs_them() -> None:
    """A function can read anything, so it must be said what is signed."""
    with pytest.raises(ConfigurationError, match="must name the attributes"):
        signed(tenant_of, keys=KEYS, queue="orders")


@pytest.mark.parametrize("lifetime", [0, -1.0, 1e15])
def test_a_lifetime_that_cannot_be_is_refused(lifetime: float) -> None:
    """A signature that has expired when it is made is refused."""
    with pytest.raises(ConfigurationError, match="takes seconds"):
        make(outgoing(), KEYS, lifetime=lifetime)


SYSTEM = {
    "MessageGroupId": "tenant-b",
    "MessageDeduplicationId": "tenant-b",
    "AWSTraceHeader": "tenant-b",
    "SenderId": "AIDAEXAMPLE",
    "ApproximateReceiveCount": "1",
}


def everything(message: Message) -> Message:
    """Resolve to all that is seen."""
    return message


def test_the_resolver_sees_nothing_that_is_not_signed() -> None:
    """No system attribute, no receipt handle: a message that is sent again may have any."""
    sent = received(make(outgoing(), KEYS))
    forged = msgspec.structs.replace(sent, system_attributes=SYSTEM, receipt_handle="r-1", queue="orders")
    seen = check(everything, KEYS)(forged)
    assert seen == Message(
        id="m-1",
        body=sent.body,
        message_attributes={"tenantId": text("tenant-a"), "region": text("eu-west-1")},
        queue="orders",
    )
    assert seen.group_id is None


def in_group(sent: OutgoingMessage, group: str | None) -> Message:
    """Make what the consumer receives in a group."""
    system = {**SYSTEM, "MessageGroupId": group} if group is not None else {}
    return msgspec.structs.replace(received(sent), system_attributes=system)


@pytest.mark.parametrize("group", ["tenant-a", None])
def test_the_group_can_be_signed(group: str | None) -> None:
    """Then the resolver sees it, and another group, or none, is refused."""
    sent = make(outgoing(group_id=group), KEYS, group=True)
    resolve = check(everything, KEYS, group=True)
    assert resolve(in_group(sent, group)).system_attributes == ({} if group is None else {"MessageGroupId": group})
    for other in {"tenant-a", "tenant-b", "", None} - {group}:
        refuse(resolve, in_group(sent, other), "does not fit")


def test_both_ends_must_say_that_the_group_is_signed() -> None:
    """A signature without it is none with it, and the other way round."""
    message = outgoing(group_id="tenant-a")
    refuse(check(everything, KEYS, group=True), in_group(make(message, KEYS), "tenant-a"), "does not fit")
    refuse(check(everything, KEYS), in_group(make(message, KEYS, group=True), "tenant-a"), "does not fit")


def test_the_group_alone_can_be_what_is_signed() -> None:
    """Where it is the tenant."""
    sent = make(outgoing(group_id="tenant-a"), KEYS, group=True, attributes=())

    def group_of(message: Message) -> str | None:
        return message.group_id

    resolve = signed(group_of, keys=KEYS, queue="orders", group=True, clock=lambda: NOW)
    assert resolve(in_group(sent, "tenant-a")) == "tenant-a"
    with pytest.raises(ConfigurationError, match="signing"):
        make(outgoing(), KEYS, attributes=())


def test_the_group_is_signed_as_the_document_says() -> None:
    """Worked out again, part by part."""
    mac = hmac.new(NEW, digestmod=hashlib.sha256)
    body = hashlib.sha256(b'{"amount": 1}').digest()
    terms = [b"postroom signed context v1", b"2026-11", b"orders", b"1800000060", body]
    region = [b"region", b"text", b"String", b"eu-west-1"]
    tenant = [b"tenantId", b"text", b"String", b"tenant-a"]
    for part in [*terms, *region, *tenant, b"MessageGroupId", b"group", b"g-1"]:
        mac.update(len(part).to_bytes(8, "big") + part)
    sent = make(outgoing(group_id="g-1"), KEYS, group=True, lifetime=60)
    assert sent.message_attributes[SIGNATURE].string_value == f"v1:2026-11:1800000060:{mac.hexdigest()}"

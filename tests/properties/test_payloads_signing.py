"""Nothing can be changed about a signed message without the signature failing."""

from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from postroom.errors import ContextError
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.payloads import KeyRing, sign, signed
from postroom.payloads.signing import SIGNATURE

KEYS = KeyRing({"a": b"\x01" * 32, "b": b"\x02" * 32}, current="a")
NAMES = ("region", "shard", "tenantId")

plain = st.text(max_size=6)
named = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)  # as SQS allows it for a queue
attributes = st.builds(
    MessageAttribute, data_type=st.sampled_from(["String", "Number", "String.x"]), string_value=plain
) | st.builds(MessageAttribute, data_type=st.just("Binary"), binary_value=st.binary(max_size=6))
contexts = st.dictionaries(st.sampled_from(NAMES), attributes, max_size=3)


def make(body: str, context: Mapping[str, MessageAttribute], queue: str = "orders") -> Message:
    """Sign a message and receive it."""
    outgoing = OutgoingMessage(body=body, message_attributes=context)
    sent = sign(outgoing, keys=KEYS, queue=queue, attributes=NAMES, lifetime=60, clock=lambda: 1e9)
    return Message(id="m-1", body=sent.body, message_attributes=sent.message_attributes)


def accepted(message: Message, queue: str = "orders") -> bool:
    """Tell whether a message is believed."""
    resolve = signed(
        lambda inner: dict(inner.message_attributes), keys=KEYS, queue=queue, attributes=NAMES, clock=lambda: 1e9
    )
    try:
        seen: dict[str, Any] = resolve(message)
    except ContextError:
        return False
    assert seen == {name: value for name, value in message.message_attributes.items() if name in NAMES}
    return True


@given(body=plain, context=contexts, queue=named)
def test_what_was_signed_is_believed(body: str, context: dict[str, MessageAttribute], queue: str) -> None:
    """Any body, any attributes, any queue: an untouched message passes."""
    assert accepted(make(body, context, queue), queue)


@given(body=plain, other=named, one=contexts, two=contexts)
def test_a_signature_fits_its_own_message_only(
    body: str, other: str, one: dict[str, MessageAttribute], two: dict[str, MessageAttribute]
) -> None:
    """A signature moved to a message with another body or other attributes fails, however alike they look."""
    assume((body, one) != (other, two))
    signature = make(body, one).message_attributes[SIGNATURE]
    forged = Message(id="m-1", body=other, message_attributes={**two, SIGNATURE: signature})
    assert not accepted(forged)


@given(body=st.text(min_size=1, max_size=8), context=contexts, data=st.data())
def test_any_changed_character_fails(body: str, context: dict[str, MessageAttribute], data: st.DataObject) -> None:
    """One character of the body or the signature, replaced by any other, taken away or doubled."""
    message = make(body, context)
    signature = message.message_attributes[SIGNATURE].string_value or ""
    in_body = data.draw(st.booleans())
    text = body if in_body else signature
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.text(st.characters(), max_size=2)) + text[at + 1 :]
    assume(changed != text)
    if in_body:
        forged = msgspec.structs.replace(message, body=changed)
    else:
        replaced = {**message.message_attributes, SIGNATURE: MessageAttribute(string_value=changed)}
        forged = msgspec.structs.replace(message, message_attributes=replaced)
    assert not accepted(forged)


@given(body=plain, context=contexts, queue=named, other=named)
def test_another_queue_fails(body: str, context: dict[str, MessageAttribute], queue: str, other: str) -> None:
    """A message signed for one queue is nothing in another."""
    assume(queue != other)
    assert not accepted(make(body, context, queue), other)


@given(
    context=contexts,
    more=st.dictionaries(plain.filter(lambda name: name not in {*NAMES, SIGNATURE}), attributes, max_size=3),
)
def test_attributes_that_are_not_signed_do_not_matter_and_are_not_seen(
    context: dict[str, MessageAttribute], more: dict[str, MessageAttribute]
) -> None:
    """Tracing may add its own on the way; the resolver never sees them."""
    message = make("{}", context)
    added = msgspec.structs.replace(message, message_attributes={**more, **message.message_attributes})
    assert accepted(added)

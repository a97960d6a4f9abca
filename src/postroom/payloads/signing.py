"""Signed contexts: proof that a tenant's name was written by who holds the key, for this body, queue and time.

Everyone who may call SendMessage on a queue may write any tenant into the attributes. Where several senders share a
queue and may speak for some tenants only, let a trusted one sign. The signature is the message attribute
``postroom.signature``:

    v1:<key id>:<expiry, seconds since the epoch>:<HMAC-SHA256, 64 lower-case hexadecimal digits>

The HMAC is over these parts, each written as its length in bytes (8 bytes, big-endian) followed by the bytes, all
text as UTF-8, so that no two different inputs are written alike:

1. ``postroom signed context v1``
2. the key id, 3. the queue's name, 4. the expiry as it stands in the attribute
5. the SHA-256 digest of the body (32 bytes)
6. for each signed attribute, sorted by name (by code point): its name; then ``absent``, or ``text`` and ``binary``
   for the kind of value; then its data type; then its value (the last two are empty where it is absent)
7. where the message group is signed: ``MessageGroupId``; then ``group`` or ``absent``; then the group (empty where it
   is absent)

Both ends agree beforehand on *which* attributes are signed, and whether the group is. The resolver sees what is signed
and nothing else: no other attribute, and no system attribute. Anyone who can read a message can replay it, until it
expires: handlers are idempotent on a queue that delivers at least once, anyway.
"""

import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, Generic

import msgspec
from typing_extensions import TypeVar

from postroom.checking import check_flag, check_function, check_kind, is_number, listed
from postroom.errors import ConfigurationError, ContextError, MissingAttribute
from postroom.message import Message, MessageAttribute, OutgoingMessage
from postroom.payloads.attributes import attribute_names
from postroom.payloads.decoder import Unwrap

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

SIGNATURE: Final = "postroom.signature"
"""The name of the message attribute that carries the signature."""
LIFETIME: Final = 345_600.0
"""How long a signature holds unless ``sign(lifetime=...)`` says otherwise: 4 days, SQS's default retention."""

_GROUP: Final = "MessageGroupId"
_DOMAIN: Final = b"postroom signed context v1"
_SHORTEST_KEY: Final = 32
_KEY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUEUE: Final = re.compile(r"[^\s/:]+")
"""No URL and no ARN: those may be written differently by sender and consumer."""
_SIGNATURE: Final = re.compile(r"v1:([A-Za-z0-9._-]{1,64}):(0|[1-9][0-9]{0,11}):([0-9a-f]{64})")


class KeyRing:
    """The secret keys of one trust domain, by key id. Several at once make rotation possible.

    To rotate: add the new key on every consumer, then make it ``current`` on the senders, then, when the last
    message signed with the old key has expired, remove the old one.

    Args:
        keys: key id to secret, at least 32 random bytes each (``secrets.token_bytes(32)``).
        current: the id of the key that signs; may be left out when there is only one.

    Raises:
        ConfigurationError: no key, a short key, an id that cannot stand in a signature, or no such ``current``.
    """

    __slots__ = ("_current", "_keys")

    def __init__(self, keys: Mapping[str, bytes], *, current: str | None = None) -> None:
        check_kind("KeyRing(keys)", keys, Mapping, "KeyRing({'2026-11': secret}), each secret 32 bytes or more")
        if not keys:
            raise ConfigurationError("KeyRing needs at least one key: KeyRing({'2026-11': secrets.token_bytes(32)})")
        for key_id, key in keys.items():
            _check_key(key_id, key)
        if current is None and len(keys) > 1:
            raise ConfigurationError(f"KeyRing has several keys: say which one signs, current={next(iter(keys))!r}")
        if current is not None and current not in keys:
            raise ConfigurationError(f"KeyRing has no key {current!r} to sign with, only {sorted(keys)}")
        self._keys = dict(keys)
        self._current = next(iter(keys)) if current is None else current

    @property
    def current(self) -> str:
        """The id of the key that signs."""
        return self._current

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._keys

    def __repr__(self) -> str:  # ids only, never a key
        return f"KeyRing({sorted(self._keys)!r}, current={self._current!r})"

    def __reduce__(self) -> tuple[object, ...]:
        # As a multiprocessing start or a cache would do without a word.
        raise TypeError("a KeyRing is not pickled: it would write the keys down")

    def mac(self, key_id: str, parts: Collection[bytes]) -> str:
        """Return the HMAC of length-prefixed parts in hexadecimal. KeyError: the ring has no such key."""
        mac = hmac.new(self._keys[key_id], digestmod=hashlib.sha256)
        for part in parts:
            # With the length: "ab" and "c" must not be signed like "a" and "bc".
            mac.update(len(part).to_bytes(8, "big"))
            mac.update(part)
        return mac.hexdigest()


def _check_key(key_id: str, key: object) -> None:
    if _KEY_ID.fullmatch(key_id) is None:
        raise ConfigurationError(f"KeyRing: a key id has 1 to 64 letters, digits, '.', '_', '-'; got {key_id!r}")
    if not isinstance(key, bytes) or len(key) < _SHORTEST_KEY:
        hint = "; text is no key: bytes.fromhex(...) makes one of it" if isinstance(key, str) else ""
        raise ConfigurationError(f"KeyRing: key {key_id!r} must be {_SHORTEST_KEY} bytes or more, random{hint}")


def sign(
    message: OutgoingMessage,
    *,
    keys: KeyRing,
    queue: str,
    attributes: Collection[str],
    group: bool = False,
    lifetime: float = LIFETIME,
    clock: Callable[[], float] = time.time,
) -> OutgoingMessage:
    """Return the message with a signature over its body and the named attributes.

    Args:
        message: with its attributes complete; one that is named but absent is signed as absent.
        keys: the current one signs.
        queue: the name of the queue that it goes to.
        attributes: the names of the attributes that make the context; the consumer must name the same ones.
        group: whether the message group is signed as well; the consumer must say the same.
        lifetime: seconds until the signature expires. Count in how long the message may wait in the queue.
        clock: seconds since the epoch.

    Raises:
        ConfigurationError: an argument cannot work.
    """
    check_kind("sign(message)", message, OutgoingMessage, "OutgoingMessage(body=..., message_attributes=...)")
    _check_terms("sign", keys, queue)
    names = _checked_names(attributes, group=group)
    check_function("sign(clock=...)", "() -> seconds since the epoch", clock, arguments=0)
    expires = _expiry(clock(), lifetime)
    if not 0 < len(expires) <= 12:
        raise ConfigurationError(f"sign(lifetime=...) takes seconds, more than 0; got {lifetime!r}")
    terms = (_DOMAIN, keys.current.encode(), queue.encode(), expires.encode())
    mac = keys.mac(keys.current, [*terms, *_covered(message, names, group=group)])
    value = f"v1:{keys.current}:{expires}:{mac}"
    signed_attributes = {**message.message_attributes, SIGNATURE: MessageAttribute(string_value=value)}
    return msgspec.structs.replace(message, message_attributes=signed_attributes)


def signed(
    resolver: Callable[[Message], T],
    *,
    keys: KeyRing,
    queue: str,
    attributes: Collection[str] | None = None,
    group: bool = False,
    leeway: float = 60.0,
    clock: Callable[[], float] = time.time,
) -> "SignedContext[T]":
    """Wrap a context resolver so that it is asked only for messages with a valid signature.

    Args:
        resolver: sync or async; it sees the body, the signed attributes, the queue and the message id, and the message
            group where that is signed. Nothing else of the message reaches it.
        keys: every key that is accepted.
        queue: the name of the queue that the sender signed for. A consumer of the dead-letter queue names the
            original queue.
        attributes: the names of the attributes that the sender signed; may be left out for a resolver of
            ``context_from_attributes``, which knows them.
        group: whether the sender signed the message group; then ``message.group_id`` can be trusted.
        leeway: seconds by which the clocks of sender and consumer may differ.
        clock: seconds since the epoch.

    Raises:
        ConfigurationError: it is not known which attributes are signed.
    """
    _check_terms("signed", keys, queue)
    if isinstance(resolver, type):
        # A class would be called with the message as its first field, and the mistake would show
        # late.
        name = resolver.__name__
        raise ConfigurationError(f"signed(resolver): write signed(context_from_attributes({name}), ...) for a class")
    check_function("signed(resolver)", "(Message) -> context", resolver)
    if attributes is None:
        attributes = attribute_names(resolver)
    if attributes is None and group:
        attributes = ()
    if attributes is None:
        raise ConfigurationError("signed(attributes=...) must name the attributes that the resolver reads")
    names = _checked_names(attributes, group=group)
    if not is_number(leeway) or not 0 <= leeway < math.inf:
        raise ConfigurationError(f"signed(leeway=...) takes seconds, at least 0; got {leeway!r}")
    check_function("signed(clock=...)", "() -> seconds since the epoch", clock, arguments=0)
    return SignedContext(resolver, keys=keys, queue=queue, names=names, group=group, leeway=leeway, clock=clock)


class SignedContext(Generic[T_co]):
    """A context resolver behind a signature check. Built by ``signed``."""

    __slots__ = ("_clock", "_group", "_keys", "_leeway", "_queue", "_resolver", "names", "unwraps")

    def __init__(
        self,
        resolver: Callable[[Message], T_co],
        *,
        keys: KeyRing,
        queue: str,
        names: tuple[str, ...],
        group: bool,
        leeway: float,
        clock: Callable[[], float],
    ) -> None:
        self._resolver = resolver
        self._keys = keys
        self._queue = queue
        self._group = group
        self._leeway = leeway
        self._clock = clock
        self.names: tuple[str, ...] = names
        """The names of the attributes that the signature covers."""
        self.unwraps: Unwrap | None = getattr(resolver, "unwraps", None)
        """What the resolver takes messages out of an envelope with, once their signature has been checked."""

    def __call__(self, message: Message, /) -> T_co:
        """Check the signature, then ask the resolver, which sees what is signed and nothing else.

        Raises:
            ContextError: the signature is malformed, of an unknown key, of another message or queue, or expired
                (``MissingAttribute``: there is none).
        """
        self._check(message)
        seen = {name: found for name in self.names if (found := message.message_attributes.get(name)) is not None}
        group = message.group_id if self._group else None
        system = {} if group is None else {_GROUP: group}
        return self._resolver(
            Message(
                id=message.id,
                body=message.body,
                message_attributes=seen,
                system_attributes=system,
                queue=message.queue,
            )
        )

    def _check(self, message: Message) -> None:
        attribute = message.message_attributes.get(SIGNATURE)
        if attribute is None or not attribute.string_value:
            text = f"message attribute {SIGNATURE!r} is missing: this consumer takes signed messages only"
            raise MissingAttribute(text, name=SIGNATURE, message_id=message.id)
        match = _SIGNATURE.fullmatch(attribute.string_value)
        if match is None:
            raise ContextError("the signature of the message is malformed", message_id=message.id)
        key_id, expires, mac = match.groups()
        if key_id not in self._keys:
            raise ContextError(
                "the message is signed with a key that this consumer does not have", message_id=message.id
            )
        # In constant time: how long a comparison takes would tell how much of a guess was right.
        if not hmac.compare_digest(mac, self._expected(message, key_id, expires)):
            text = "the signature does not fit the message: attributes, body, queue or expiry are not what was signed"
            raise ContextError(text, message_id=message.id)
        late = self._clock() - int(expires)  # looked at last: only now it is known to be the sender's
        if late > self._leeway:
            raise ContextError(f"the signature of the message expired {late:.0f} s ago", message_id=message.id)

    def _expected(self, message: Message, key_id: str, expires: str) -> str:
        terms = (_DOMAIN, key_id.encode(), self._queue.encode(), expires.encode())
        try:
            return self._keys.mac(key_id, [*terms, *_covered(message, self.names, group=self._group)])
        except UnicodeEncodeError:  # no sender could have signed what has no bytes
            return ""


_ENDLESS: Final = 3e9
"""A century in seconds."""


def _expiry(now: float, lifetime: object) -> str:
    return str(int(now + lifetime)) if isinstance(lifetime, int | float) and 0 < lifetime < _ENDLESS else ""


def _check_terms(what: str, keys: object, queue: object) -> None:
    check_kind(f"{what}(keys=...)", keys, KeyRing, "keys=KeyRing({'2026-11': secret})")
    if not isinstance(queue, str) or _QUEUE.fullmatch(queue) is None:
        raise ConfigurationError(f"{what}(queue=...) takes the name of the queue; got {queue!r}")


def _checked_names(attributes: Collection[str], *, group: bool) -> tuple[str, ...]:
    example = "attributes=['tenantId', 'region']"
    check_flag("signing: group=", group)
    names = listed("signing: attributes=", example, attributes)
    if not (names or group) or SIGNATURE in names or not all(isinstance(name, str) for name in names):
        text = f"signing takes the names of one or more attributes: write {example}; got {attributes!r}"
        raise ConfigurationError(text)
    return tuple(sorted(set(names)))


def _covered(message: Message | OutgoingMessage, names: tuple[str, ...], *, group: bool) -> Iterator[bytes]:
    # The digest, and not the body: the HMAC would otherwise need up to 1 MiB in one piece.
    yield hashlib.sha256(message.body.encode()).digest()
    for name in names:
        yield name.encode()
        yield from _value(message.message_attributes.get(name))
    if group:
        yield _GROUP.encode()
        yield b"absent" if message.group_id is None else b"group"
        yield (message.group_id or "").encode()


def _value(attribute: MessageAttribute | None) -> tuple[bytes, bytes, bytes]:
    if attribute is None:
        return b"absent", b"", b""
    if attribute.binary_value is not None:
        return b"binary", attribute.data_type.encode(), attribute.binary_value
    return b"text", attribute.data_type.encode(), (attribute.string_value or "").encode()

"""Whether the hot path may be taken, and where it leads: what botocore itself would do, seen from outside.

The hot path makes the same requests as the ordinary client or none at all. So whatever a user has configured that
it does not know how to follow is an objection, and so is whatever it cannot make out.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, cast
from urllib.parse import urlsplit

from postroom.transports.aws.signing import CONTENT_TYPE, TARGET_PREFIX, Scope

OPERATIONS: Final = ("ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch")
"""The actions of the hot path."""

_EVENTS: Final = (
    "provide-client-params",
    "before-parameter-build",
    "before-endpoint-resolution",
    "before-call",
    "request-created",
    "choose-signer",
    "before-sign",
    "before-send",
    "response-received",
    "before-parse",
    "needs-retry",
    "after-call",
    "after-call-error",
)
_KNOWN_HEADERS: Final = frozenset(
    {"x-amz-target", "content-type", "user-agent", "x-amzn-query-mode", "amz-sdk-invocation-id", "amz-sdk-request"}
)
_KNOWN_CONNECTOR_ARGS: Final = frozenset({"keepalive_timeout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where botocore sends its requests to, and for what it signs them."""

    host: str
    port: int
    secure: bool
    scope: Scope


def objections(session: Any, sqs: Any, *, verify: bool | str | None) -> Iterator[str]:
    """Yield what speaks against the hot path in the configuration of a session and of its client.

    Args:
        session: the botocore session.
        sqs: the botocore client.
        verify: what the client was made with.
    """
    config = sqs.meta.config
    if not _is_switched_on():
        yield "POSTROOM_HOT_PATH is off"
    if config.proxies or _environment_proxies(sqs.meta.endpoint_url):
        yield "a proxy is configured"
    if config.client_cert:
        yield "a client certificate is configured"
    if custom_authority(session, sqs, verify=verify):
        yield "the certificate authority is not the default one"
    retries: dict[str, Any] = config.retries or {}
    if retries.get("mode") == "adaptive":  # it limits the rate of its own calls, and would not see ours
        yield "the retry mode is adaptive"
    if set(getattr(config, "connector_args", None) or ()) - _KNOWN_CONNECTOR_ARGS:
        yield "the connector is configured"
    if not _is_own(getattr(config, "http_session_cls", None)):
        yield "the HTTP layer is not aiobotocore's own"
    if not _is_own_function(cast("type[object]", type(sqs)), "_make_api_call"):
        yield "the client is instrumented"
    if _foreign_handlers(sqs.meta.events):
        yield "the session has event handlers of its own"


def _is_switched_on() -> bool:
    return os.environ.get("POSTROOM_HOT_PATH", "on").lower() not in {"off", "0", "false", "no"}


def custom_authority(session: Any, sqs: Any, *, verify: bool | str | None) -> bool:
    """Whether a client trusts others than botocore does by itself."""
    bundle = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    return str(sqs.meta.endpoint_url).startswith("https:") and (verify is not None or bool(bundle))


def _environment_proxies(url: str) -> bool:
    from botocore import utils  # noqa: PLC0415 - loaded with the client, not before

    return bool(cast("Any", utils).get_environ_proxies(url))


def _is_own(thing: Any) -> bool:
    module = str(getattr(thing, "__module__", None) or type(thing).__module__)
    return module.partition(".")[0] in {"botocore", "aiobotocore"}


def _is_own_function(cls: type[object], name: str) -> bool:
    # Tracing libraries replace this method, by a wrapper object or by a function of theirs.
    function: Any = next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)
    return isinstance(function, FunctionType) and str(function.__globals__.get("__name__")).startswith("aiobotocore.")


def _foreign_handlers(events: Any) -> bool:
    # botocore has no public way to list handlers. Where its inside changes, the answer is "there may be some".
    trie = getattr(getattr(events, "_emitter", events), "_handlers", None)
    if trie is None or not hasattr(trie, "prefix_search"):
        return True
    names = (f"{event}.sqs.{operation}" for event in _EVENTS for operation in OPERATIONS)
    return any(not _is_own(_unwrap(handler)) for name in names for handler in trie.prefix_search(name))


def _unwrap(handler: Any) -> Any:
    while (inner := getattr(handler, "func", None)) is not None:  # functools.partial
        handler = inner
    return handler


class Capture:
    """Looks over botocore's shoulder at its first request, by the public event ``before-sign``.

    Args:
        events: the events of the client.
    """

    _EVENT: Final = "before-sign.sqs"

    __slots__ = ("_endpoint", "_events", "_objections")

    def __init__(self, events: Any) -> None:
        self._events = events
        self._endpoint: Endpoint | None = None
        self._objections: tuple[str, ...] = ()
        events.register(self._EVENT, self._look)

    @property
    def endpoint(self) -> Endpoint | None:
        """Where the first request went; None before it, and when something speaks against the hot path."""
        return self._endpoint

    @property
    def objections(self) -> tuple[str, ...]:
        """What speaks against the hot path in the first request."""
        return self._objections

    def _look(self, *, request: Any, signing_name: str, region_name: str, signature_version: Any, **_: Any) -> None:
        self._events.unregister(self._EVENT, self._look)
        signing = request.context.get("signing", {})
        self._objections = tuple(_objections_to(request, signing, signature_version))
        if not self._objections:
            self._endpoint = _endpoint_of(
                request,
                region=signing.get("region") or region_name,
                service=signing.get("signing_name") or signing_name,
            )


def _objections_to(request: Any, signing: dict[str, Any], signature_version: Any) -> Iterable[str]:
    url = urlsplit(str(request.url))
    headers = {name.lower(): value for name, value in request.headers.items()}
    if signature_version != "v4":
        yield f"the signature version is {signature_version}"
    if set(signing) - {"region", "signing_name", "disableDoubleEncoding"}:
        yield "the signature is special"
    if request.method != "POST" or url.path not in {"", "/"} or url.query or url.username:
        yield "the endpoint has a path"
    if _text(headers.get("content-type")) != CONTENT_TYPE or not _text(headers.get("x-amz-target")).startswith(
        TARGET_PREFIX
    ):
        yield "the protocol is not JSON 1.0"
    if strange := set(headers) - _KNOWN_HEADERS:
        yield f"requests carry further headers ({', '.join(sorted(strange))})"


def _endpoint_of(request: Any, *, region: str, service: str) -> Endpoint:
    url = urlsplit(str(request.url))
    secure = url.scheme == "https"
    host = url.hostname or ""
    default = 443 if secure else 80
    port = url.port or default
    name = f"[{host}]" if ":" in host else host
    return Endpoint(
        host=host,
        port=port,
        secure=secure,
        scope=Scope(
            host=name if port == default else f"{name}:{port}",
            region=region,
            service=service,
            user_agent=_text(request.headers.get("User-Agent")),
        ),
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")

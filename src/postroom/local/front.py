"""From an HTTP request to an action of the broker, and back."""

import logging
import re
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from postroom.local import wire_json, wire_query
from postroom.local.actions import RECEIVE, Action, Call
from postroom.local.errors import BrokerError
from postroom.local.hosts import HostPolicy
from postroom.local.http import Request, Respond, Response
from postroom.local.inprocess import LocalBroker, Poll
from postroom.local.options import Scope
from postroom.local.shapes import Received, ReceivedMessages

_REMEMBERED = 1_000
_NOT_OURS = frozenset({"UnknownOperationException", "SerializationException"})
"""Errors of requests that are none of SQS."""
_SERVICE = re.compile(r"[a-z0-9-]{1,40}")
_log = logging.getLogger("postroom.local")


class Access(NamedTuple):
    """One line of the request log. No bodies, no attributes."""

    action: str
    queue: str
    status: int
    code: str
    """The error code; empty when there was none."""
    seconds: float
    """From the last byte of the request to the response: for a long poll, its wait."""
    size: int
    """Bytes of the response's body."""


class _Wire(NamedTuple):
    """How to answer one request."""

    action: Action
    request: Any
    response: Callable[[msgspec.Struct | None, str], Response]


class Front:
    """Answers HTTP requests from a broker.

    Args:
        broker: the broker; open.
        base_url: returns the server's own URL, for requests without a Host header.
        access: is told of every action.
        hosts: refuses what a web page may have sent.
    """

    def __init__(
        self,
        broker: LocalBroker,
        base_url: Callable[[], str],
        access: Callable[[Access], None] | None,
        hosts: HostPolicy | None = None,
    ) -> None:
        self._broker = broker
        self._base_url = base_url
        self._access = access
        self._hosts = hosts or HostPolicy()
        self._served = 0
        self._callers: dict[bytes, tuple[Scope, str]] = {}
        self._base_urls: dict[bytes, str] = {}

    def __call__(self, request: Request, respond: Respond) -> Response | Poll:
        """Answer a request, now or, for a long poll that finds nothing, later."""
        started = perf_counter()
        self._served += 1
        request_id = f"00000000-0000-4000-8000-{self._served:012x}"
        # Before anything of the request is read: a strange page must not even learn which queues exist.
        if (reason := self._hosts.refusal(request.headers)) is not None:
            return self._refuse(reason)
        target = request.headers.get(b"x-amz-target")
        if target is None and (page := self._page(request)) is not None:
            return self._of_another_service(request, request_id) or page
        # Chosen before anything can fail: an error is told in the protocol of its request.
        error_response = wire_json.error_response if target is not None else _query_errors(request)
        name = queue_url = ""
        try:
            wire = self._read(request, target)
            name, queue_url = wire.action.name, getattr(wire.request, "queue_url", None) or ""
            call = self._call(request)
            if wire.action is RECEIVE:
                answer = self._receive(call, wire, respond, request_id, started)
                if not isinstance(answer, Response):
                    return answer
            else:
                assert wire.action.run is not None  # noqa: S101 - only ReceiveMessage has none
                answer = wire.response(wire.action.run(call, wire.request), request_id)
            code = ""
        except BrokerError as error:
            answer, code = error_response(error, request_id), error.code
            if error.kind in _NOT_OURS and (other := self._of_another_service(request, request_id)) is not None:
                return other
        except Exception as error:
            _log.exception("the local broker failed in %s", name or "a request")
            failure = BrokerError(
                "InternalFailure", f"{type(error).__name__} in the broker", status=500, sender_fault=False
            )
            answer, code = error_response(failure, request_id), failure.code
        self._note(name, queue_url, answer, code, started)
        return answer

    def _receive(self, call: Call, wire: _Wire, respond: Respond, request_id: str, started: float) -> Response | Poll:
        queue = call.queue(wire.request)

        def deliver(messages: list[Received]) -> None:
            answer = wire.response(ReceivedMessages(messages), request_id)
            self._note(RECEIVE.name, queue.name, answer, "", started)
            respond(answer)

        messages, poll = self._broker.poll(queue, wire.request, deliver)
        return poll if poll is not None else wire.response(ReceivedMessages(messages), request_id)

    def _read(self, request: Request, target: bytes | None) -> _Wire:
        if target is not None:
            action = wire_json.action_of(target)
            return _Wire(action, wire_json.read(action, request.body), wire_json.response)
        try:
            target_parts = urlsplit(request.target)
        except ValueError:  # such as half an IPv6 address
            raise BrokerError("InvalidAddress", "The address of this request is not valid.") from None
        form = wire_query.fields(target_parts.query, request.body)
        path = unquote(target_parts.path)
        queue_url = self._base_url() + path if path.strip("/") else None
        action = wire_query.action_of(form, at_queue=queue_url is not None)
        write = wire_query.json_response if _wants_json(request) else wire_query.response
        return _Wire(action, wire_query.read(action, form, queue_url), partial(write, action))

    # -- who calls -----------------------------------------------------------------------------------------------

    def _call(self, request: Request) -> Call:
        headers = request.headers
        credential = _credential(request)
        caller = self._callers.get(credential)
        if caller is None:
            caller = _remember(self._callers, credential, self._caller(credential))
        host = headers.get(b"host", b"")
        base_url = self._base_urls.get(host)
        if base_url is None:
            url = f"http://{host.decode('latin-1')}" if host else self._base_url()
            base_url = _remember(self._base_urls, host, url)
        trace = headers.get(b"x-amzn-trace-id")
        return Call(self._broker.engine, *caller, base_url, None if trace is None else trace.decode("latin-1"))

    def _caller(self, credential: bytes) -> tuple[Scope, str]:
        """Read ``key/date/region/service/aws4_request``. Signatures are not verified: there are no secrets here.

        An access key of twelve digits is an account of its own, as in other local servers.
        """
        parts = credential.decode("latin-1").split("/")
        if len(parts) != 5:
            return self._broker.scope, "anonymous"
        key, region = parts[0], parts[2]
        is_account = len(key) == 12 and key.isascii() and key.isdigit()
        return Scope(key if is_account else self._broker.scope.account, region), key

    # -- pages and log -------------------------------------------------------------------------------------------

    def _page(self, request: Request) -> Response | None:
        path, _, query = request.target.partition("?")
        if path == "/health":
            return self._health()
        if request.method not in {"GET", "POST"}:
            return Response(405, "Allow: GET, POST\r\nContent-Type: text/plain\r\n", b"GET or POST\n")
        if path == "/" and not query and not request.body:
            text = f"postroom local: Amazon SQS for development, at {self._base_url()}\n"
            return Response(200, "Content-Type: text/plain\r\n", text.encode())
        if request.method == "GET" and "Action" not in parse_qs(query, keep_blank_values=True):
            return wire_query.UNKNOWN_OPERATION
        return None

    def _of_another_service(self, request: Request, request_id: str) -> Response | None:
        """Refuse what was signed for another service of AWS: its client was given this endpoint, too."""
        service = _credential(request).decode("latin-1").split("/")[3:4]
        if not service or service == ["sqs"]:
            return None
        name = service[0] if _SERVICE.fullmatch(service[0]) else "another service"
        text = (
            f"This endpoint is Amazon SQS only, and the request is for {name}. "
            "AWS_ENDPOINT_URL_SQS, in place of AWS_ENDPOINT_URL, points clients of SQS alone here."
        )
        error = BrokerError("NotImplemented", text, status=501)
        if name == "s3":
            answer = wire_query.s3_error_response(error)
        elif b"x-amz-target" in request.headers:
            answer = wire_json.error_response(error, request_id)
        else:
            answer = _query_errors(request)(error, request_id)
        self._note(f"({name})", "", answer, error.code, perf_counter())
        return answer

    def _refuse(self, reason: str) -> Response:
        """Refuse what a web page may have sent; it could not read a reason in SQS's own form either."""
        answer = Response(403, "Content-Type: text/plain\r\n", f"{reason}\n".encode())
        self._note("", "", answer, "Forbidden", perf_counter())
        return answer

    def _health(self) -> Response:
        """Say that it lives, and what is in it."""
        queues = list(self._broker.engine.registry)
        body = {
            "status": "ok",
            "queues": len(queues),
            "messages": sum(len(queue.messages) for queue in queues),
            "waiting": len(self._broker.polls),
            "requests": self._served,
        }
        return Response(200, "Content-Type: application/json\r\n", msgspec.json.encode(body))

    def _note(self, action: str, queue: str, answer: Response, code: str, started: float) -> None:
        if self._access is not None:
            name = queue.rpartition("/")[2]
            self._access(Access(action, name, answer.status, code, perf_counter() - started, len(answer.body)))


_T = TypeVar("_T")


def _remember(known: dict[bytes, _T], key: bytes, value: _T) -> _T:
    """Remember what was worked out for a header, among a bounded number of others."""
    if len(known) >= _REMEMBERED:
        known.clear()
    known[key] = value
    return value


def _wants_json(request: Request) -> bool:
    """Whether a request in the query protocol asks for its answer in JSON."""
    return b"application/json" in request.headers.get(b"accept", b"").lower()


def _query_errors(request: Request) -> Callable[[BrokerError, str], Response]:
    return wire_query.json_error_response if _wants_json(request) else wire_query.error_response


def _credential(request: Request) -> bytes:
    """Return the credential scope of a request, from its header or its pre-signed URL; empty if it is not signed."""
    header = request.headers.get(b"authorization")
    if header is not None:
        return header.partition(b"Credential=")[2].partition(b",")[0].strip()
    _, mark, rest = request.target.partition("X-Amz-Credential=")
    return unquote(rest.partition("&")[0]).encode("latin-1", "replace") if mark else b""

"""AWS Signature Version 4 for SQS's JSON protocol: ``POST /`` with a body, nothing else.

The signing key is derived once a day, the dates are formatted once a second, and receives that ask for the same are
signed once a second: a signature holds the second, and nothing that tells two equal requests apart. The general signer
of botocore takes ten times as long, because it canonicalises anything.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Final, Protocol

from postroom.errors import ConfigurationError

CONTENT_TYPE: Final = "application/x-amz-json-1.0"
TARGET_PREFIX: Final = "AmazonSQS."
_MOST_KEPT: Final = 100
"""Receives that are kept signed, of which each queue needs one."""
_OF_ITS_OWN: Final = b'"ReceiveRequestAttemptId"'
"""What no two receives of a FIFO queue share."""


class Credentials(Protocol):
    """Frozen credentials, as a botocore session returns them."""

    @property
    def access_key(self) -> str:
        """Who signs."""
        ...

    @property
    def secret_key(self) -> str:
        """With what."""
        ...

    @property
    def token(self) -> str | None:
        """The session token of temporary credentials."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a signature is valid for, and the endpoint that it goes to.

    Args:
        host: the Host header: the host, with the port where it is not the scheme's own.
        region: the region that signs.
        service: the service's signing name.
        user_agent: what to send as User-Agent; it is not signed.
    """

    host: str
    region: str
    service: str
    user_agent: str


class Signer:
    """Makes signed requests for one scope and one set of credentials.

    Raises:
        ConfigurationError: a part cannot stand in a header.
    """

    __slots__ = (
        "_before",
        "_credentials",
        "_day",
        "_mac",
        "_names",
        "_prefix",
        "_receives",
        "_scope",
        "_second",
        "_token",
    )

    def __init__(self, scope: Scope, credentials: Credentials) -> None:
        token = credentials.token
        _check_headers(scope.host, scope.user_agent, credentials.access_key, token or "")
        self._scope = scope
        self._credentials = credentials
        self._token = f"x-amz-security-token:{token}\n" if token else ""
        self._names = "content-type;host;x-amz-date;" + ("x-amz-security-token;" if token else "") + "x-amz-target"
        self._before = (
            f"POST / HTTP/1.1\r\nHost: {scope.host}\r\nUser-Agent: {scope.user_agent}\r\n"
            f"Content-Type: {CONTENT_TYPE}\r\n" + (f"X-Amz-Security-Token: {token}\r\n" if token else "")
        )
        self._second = -1
        self._day: str = ""
        self._mac: hmac.HMAC
        """With the key of the day. It is copied: to begin with the key each time takes twice as long."""
        self._receives: dict[bytes, bytes] = {}
        """The signed requests of this second, by their bodies."""
        self._prefix = ("", "", "")

    def request(self, operation: str, body: bytes, *, now: int | None = None) -> bytes:
        """Return the whole HTTP request, head and body.

        Args:
            operation: the SQS action.
            body: the JSON.
            now: seconds since the epoch; None for the wall clock, which is what AWS compares with.
        """
        second = int(time.time()) if now is None else now
        if second != self._second:
            self._roll(second)
        if operation == "ReceiveMessage" and (signed := self._receives.get(body)) is not None:
            return signed
        date, credential, to_sign = self._prefix
        target = TARGET_PREFIX + operation
        canonical = (
            f"POST\n/\n\ncontent-type:{CONTENT_TYPE}\nhost:{self._scope.host}\nx-amz-date:{date}\n{self._token}"
            f"x-amz-target:{target}\n\n{self._names}\n{hashlib.sha256(body).hexdigest()}"
        )
        to_sign += hashlib.sha256(canonical.encode()).hexdigest()
        mac = self._mac.copy()
        mac.update(to_sign.encode())
        head = (
            f"{self._before}X-Amz-Target: {target}\r\nX-Amz-Date: {date}\r\nAuthorization: AWS4-HMAC-SHA256 "
            f"Credential={credential}, SignedHeaders={self._names}, Signature={mac.hexdigest()}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        signed = head.encode() + body
        if operation == "ReceiveMessage" and len(self._receives) < _MOST_KEPT and _OF_ITS_OWN not in body:
            self._receives[body] = signed
        return signed

    def _roll(self, second: int) -> None:
        date: str = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        day = date[:8]
        if day != self._day:
            key = _signing_key(self._credentials.secret_key, day, self._scope)
            self._mac = hmac.new(key, digestmod="sha256")
            self._day = day
        scope = f"{day}/{self._scope.region}/{self._scope.service}/aws4_request"
        credential = f"{self._credentials.access_key}/{scope}"
        self._prefix = (date, credential, f"AWS4-HMAC-SHA256\n{date}\n{scope}\n")
        self._second = second
        self._receives.clear()


def _signing_key(secret: str, day: str, scope: Scope) -> bytes:
    key: bytes = f"AWS4{secret}".encode()
    for part in (day, scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _check_headers(*values: str) -> None:
    # A line break in a token would end the header and begin another one.
    if not all(value.isascii() and value.isprintable() and value == " ".join(value.split()) for value in values):
        raise ConfigurationError("the credentials, the host or the user agent hold characters that no header may")

"""Raw requests to the server under judgement, signed or not, so that a check can look at the wire itself."""

import http.client
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from conformance.sqs.clients import XML_NAMESPACE, Target

JSON_TYPE = "application/x-amz-json-1.0"
FORM_TYPE = "application/x-www-form-urlencoded; charset=utf-8"


@dataclass(frozen=True)
class Reply:
    """Hold one HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Read the body as JSON."""
        return json.loads(self.body)

    @property
    def xml(self) -> ET.Element:
        """Read the body as XML."""
        return ET.fromstring(self.body)  # noqa: S314 - the answer of a server that was chosen to be tested

    def text(self, path: str) -> str | None:
        """Return the text of an XML element below the root, whatever its namespace."""
        steps = "/".join(f"{{*}}{step}" for step in path.split("/"))
        return self.xml.findtext(steps)

    def texts(self, path: str) -> list[str]:
        """Return the texts of all XML elements at that path below the root."""
        steps = "/".join(f"{{*}}{step}" for step in path.split("/"))
        return [element.text or "" for element in self.xml.findall(steps)]

    @property
    def root(self) -> str:
        """Return the name of the XML root without its namespace."""
        return self.xml.tag.rpartition("}")[2]

    @property
    def namespace(self) -> str:
        """Return the namespace of the XML root."""
        return self.xml.tag.rpartition("}")[0].lstrip("{")


class Wire:
    """Send raw requests over one connection, which stays open between them if the server lets it."""

    def __init__(self, target: Target) -> None:
        """Remember the server; the connection opens with the first request."""
        self._target = target
        url = urllib.parse.urlsplit(target.endpoint)
        https = url.scheme == "https"
        factory = http.client.HTTPSConnection if https else http.client.HTTPConnection
        self._connection = factory(url.hostname or "localhost", url.port, timeout=30)
        self._base = url.path.rstrip("/")
        self.opened = 0
        connect = self._connection.connect

        def counted() -> None:
            self.opened += 1
            connect()

        self._connection.connect = counted  # type: ignore[method-assign]  # http.client has no hook for this

    def json(
        self,
        action: str,
        payload: Mapping[str, Any] | bytes,
        *,
        path: str = "/",
        signed: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send a request of the AWS JSON 1.0 protocol."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload, ensure_ascii=False).encode()
        own = {"Content-Type": JSON_TYPE, "X-Amz-Target": f"AmazonSQS.{action}"}
        return self.send("POST", path, body=body, headers={**own, **(headers or {})}, signed=signed)

    def query(
        self,
        action: str | None,
        params: Mapping[str, str],
        *,
        path: str = "/",
        method: str = "POST",
        signed: bool = True,
    ) -> Reply:
        """Send a request of the query protocol: a form in the body, or a GET."""
        fields = {**({"Action": action} if action else {}), "Version": "2012-11-05", **params}
        encoded = urllib.parse.urlencode(fields, quote_via=urllib.parse.quote)
        if method == "GET":
            return self.send("GET", f"{path}?{encoded}", signed=signed)
        return self.send("POST", path, body=encoded.encode(), headers={"Content-Type": FORM_TYPE}, signed=signed)

    def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
    ) -> Reply:
        """Send one request and read its whole answer."""
        full = self._base + path
        sent = dict(headers or {})
        if signed:
            sent = self._signed(method, full, body, sent)
        self._connection.request(method, full, body=body, headers=sent)
        answer = self._connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _signed(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> dict[str, str]:
        url = urllib.parse.urlsplit(self._target.endpoint)
        request = AWSRequest(method, f"{url.scheme}://{url.netloc}{path}", headers=headers, data=body)
        keys = Credentials(self._target.access_key, self._target.secret_key)
        SigV4Auth(keys, "sqs", self._target.region).add_auth(request)
        return dict(request.headers.items())


@contextmanager
def open_wire(target: Target) -> Iterator[Wire]:
    """Open a raw connection and close it at the end."""
    wire = Wire(target)
    try:
        yield wire
    finally:
        wire.close()


def path_of(queue_url: str) -> str:
    """Return the path of a queue URL: the account and the queue's name."""
    return urllib.parse.urlsplit(queue_url).path


__all__ = ["FORM_TYPE", "JSON_TYPE", "XML_NAMESPACE", "Reply", "Wire", "open_wire", "path_of"]

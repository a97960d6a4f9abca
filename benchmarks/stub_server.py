"""A stub SQS that costs next to nothing, so that a benchmark measures its clients.

It speaks the AWS JSON 1.0 protocol over HTTP/1.1, plain and TLS, and stores nothing:

* queue ``bench``: every receive answers ten messages at once, every batch succeeds
* queue ``idle``: a receive is held for as long as it asks for and then finds nothing; batches succeed at once
* queue ``run-NAME-NUMBER``: hands out so many messages (a multiple of ten), each with an id and a receipt handle of its
  own, and is empty then; it counts calls, and times every message from the answer that brings it to its delete. A
  message comes once more when its visibility timeout is set to 0; that is all it knows of visibility
* queue ``task-NAME-NUMBER``: the same, with bodies in the envelope of taskiq

Run it (``python benchmarks/stub_server.py``) and it prints one line of JSON with its ports and its certificate; it
ends with its standard input. :class:`StubServer` does both.
"""

import argparse
import asyncio
import base64
import json
import random
import re
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

ACCOUNT = "000000000000"
MESSAGES = 10
ENTRY_ID = re.compile(rb'"Id"\s*:\s*"([^"]+)"')
WAIT = re.compile(rb'"WaitTimeSeconds"\s*:\s*(\d+)')
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
TARGET = re.compile(rb"\r\nx-amz-target:\s*AmazonSQS\.(\w+)", re.IGNORECASE)
RUN = re.compile(rb'[/"](run|task)-([\w.]+)-(\d+)"')
HANDLE = re.compile(rb'"ReceiptHandle"\s*:\s*"run\d([0-9]{12})')
_IDENTITY = ("MessageId", "ReceiptHandle")
PLACE = b"@" * 12
"""Where the number of a receive goes: into every id and receipt handle of its messages."""


def message(number: int, source: random.Random) -> dict[str, Any]:
    """Return one message of about a kilobyte, as SQS writes it: an order of one of seven tenants."""
    body = {
        "order_id": str(uuid.UUID(int=source.getrandbits(128))),
        "customer_id": f"customer-{number:06d}",
        "amount": "1234.50",
        "currency": "EUR",
        "items": [{"sku": f"SKU-{item:05d}", "quantity": item} for item in range(5)],
        "note": "x" * 30,
    }
    return {
        "MessageId": str(uuid.UUID(int=source.getrandbits(128))),
        "ReceiptHandle": base64.b64encode(source.randbytes(180)).decode(),
        "MD5OfBody": source.randbytes(16).hex(),
        "Body": json.dumps(body),
        "MD5OfMessageAttributes": source.randbytes(16).hex(),
        "MessageAttributes": {
            "tenantId": {"StringValue": f"tenant-{number % 7}", "DataType": "String"},
            "region": {"StringValue": "eu-central-1", "DataType": "String"},
        },
        "Attributes": {
            "SenderId": "AIDAIENQZJOLO23YVJ4VO",
            "ApproximateFirstReceiveTimestamp": "1763856000123",
            "ApproximateReceiveCount": "1",
            "SentTimestamp": "1763856000023",
        },
    }


def response(body: bytes) -> bytes:
    """Return a whole HTTP response with the headers that SQS sends."""
    return (
        b"HTTP/1.1 200 OK\r\nx-amzn-RequestId: 0d9b3c7e-1a2b-5c3d-8e4f-112233445566\r\n"
        b"Date: Sun, 23 Nov 2025 00:00:00 GMT\r\nContent-Type: application/x-amz-json-1.0\r\n"
        b"connection: keep-alive\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def template(*, enveloped: bool) -> bytes:
    """Return the answer to a receive with messages that get their identity from a number put at ``PLACE``."""
    source = random.Random(7)
    messages = [message(number, source) for number in range(MESSAGES)]
    for number, one in enumerate(messages):
        one["MessageId"] = one["MessageId"][:-12] + PLACE.decode()
        one["ReceiptHandle"] = f"run{number}{PLACE.decode()}{one['ReceiptHandle'][16:]}"
        if enveloped:
            task = {"task_id": one["MessageId"], "task_name": "order", "labels": {}, "labels_types": {}}
            one["Body"] = json.dumps({**task, "args": [json.loads(one["Body"])], "kwargs": {}})
    return response(_compact({"Messages": messages}))


class Run:
    """A queue with so many messages: what is left of them, and what was seen of its consumer."""

    def __init__(self, messages: int, answer: bytes) -> None:
        self._answer = answer
        self._left = messages // MESSAGES
        self._calls: Counter[str] = Counter()
        self._received: list[float] = []
        self._deleted: list[tuple[float, list[bytes]]] = []
        self._shown: deque[bytes] = deque()
        self.waiting: deque[StubProtocol] = deque()
        """Receives that are held."""

    def count(self, operation: bytes) -> None:
        """Count a call."""
        self._calls[operation.decode()] += 1

    def receive(self) -> bytes | None:
        """Return the next answer, or None when there is none left."""
        if self._shown:
            return self._shown.popleft()
        if not self._left:
            return None
        self._left -= 1
        number = len(self._received)
        self._received.append(time.monotonic())
        return self._answer.replace(PLACE, b"%012d" % number)

    def change_visibility(self, body: bytes) -> None:
        """Let messages be received once more when their visibility timeout becomes 0."""
        messages: list[dict[str, Any]] = json.loads(self._answer.partition(b"\r\n\r\n")[2])["Messages"]
        again: list[dict[str, Any]] = []
        for entry in json.loads(body)["Entries"]:
            if entry["VisibilityTimeout"] == 0:
                handle: str = entry["ReceiptHandle"]  # run, the place in the receive, the number of the receive
                place, number = int(handle[3]), handle[4 : 4 + len(PLACE)]
                same = {name: messages[place][name].replace(PLACE.decode(), number) for name in _IDENTITY}
                again.append({**messages[place], **same})
        if again:
            self._shown.append(response(_compact({"Messages": again})))
        while self._shown and self.waiting:
            if self.waiting.popleft().end_hold(self._shown[0]):
                self._shown.popleft()

    def delete(self, body: bytes) -> None:
        """Note which messages are deleted, and when. What that means is worked out afterwards."""
        self._deleted.append((time.monotonic(), HANDLE.findall(body)))

    def report(self) -> dict[str, Any]:
        """Return what was seen: calls, times on the system's monotonic clock, seconds from receive to delete."""
        held = sorted(at - self._received[int(handle)] for at, handles in self._deleted for handle in handles)
        return {
            "calls": dict(self._calls),
            "first": self._received[0] if self._received else None,
            "last": self._deleted[-1][0] if self._deleted else None,
            "deleted": len(held),
            "p50": held[len(held) // 2] if held else None,
            "p99": held[len(held) * 99 // 100] if held else None,
        }


class Answers:
    """The answers, made beforehand as far as they can be."""

    def __init__(self) -> None:
        source = random.Random(7)
        self.receive = response(_compact({"Messages": [message(number, source) for number in range(MESSAGES)]}))
        self.empty = response(b"{}")
        self._batches: dict[tuple[bytes, ...], bytes] = {}
        self._templates = {b"run": template(enveloped=False), b"task": template(enveloped=True)}
        self._runs: dict[bytes, Run] = {}

    def run(self, body: bytes) -> Run | None:
        """Return the run that a request is about, if it is about one."""
        named = RUN.search(body)
        if named is None:
            return None
        run = self._runs.get(named[0])
        if run is None:
            run = self._runs[named[0]] = Run(int(named[3]), self._templates[named[1]])
        return run

    def batch(self, body: bytes) -> bytes:
        """Return the answer that confirms every entry of a batch."""
        ids = tuple(ENTRY_ID.findall(body))
        answer = self._batches.get(ids)
        if answer is None:
            entries = b",".join(b'{"Id":"%b","MessageId":"%b","MD5OfMessageBody":"0"}' % (i, i) for i in ids)
            answer = self._batches[ids] = response(b'{"Successful":[%b],"Failed":[]}' % entries)
        return answer

    def describe(self, operation: bytes, body: bytes) -> bytes:
        """Return the answer to GetQueueUrl or GetQueueAttributes."""
        asked: dict[str, Any] = json.loads(body or b"{}")
        name = str(asked.get("QueueName") or asked.get("QueueUrl", "bench")).rsplit("/", 1)[-1]
        if operation == b"GetQueueUrl":
            return response(_compact({"QueueUrl": f"http://127.0.0.1/{ACCOUNT}/{name}"}))
        arn = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{name}"
        return response(_compact({"Attributes": {"QueueArn": arn, "VisibilityTimeout": "30"}}))


class StubProtocol(asyncio.Protocol):
    """One connection: HTTP/1.1 with keep-alive; requests are answered in order."""

    def __init__(self, answers: Answers, loop: asyncio.AbstractEventLoop) -> None:
        self._answers = answers
        self._loop = loop
        self._buffer = b""
        self._transport: asyncio.Transport
        self._held: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a held receive: its client is gone."""
        if self._held is not None:
            self._held.cancel()
            self._held = None

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        data = self._buffer + data
        while True:
            end = data.find(b"\r\n\r\n")
            length = CONTENT_LENGTH.search(data, 0, end + 2) if end >= 0 else None
            stop = end + 4 + (int(length[1]) if length else 0)
            if end < 0 or len(data) < stop:
                break
            target = TARGET.search(data, 0, end + 2)
            self._answer(target[1] if target else b"", data[end + 4 : stop])
            data = data[stop:]
        self._buffer = data

    def _answer(self, operation: bytes, body: bytes) -> None:
        run = self._answers.run(body)
        if run is not None:
            self._answer_run(run, operation, body)
        elif operation == b"ReceiveMessage":
            if b"/idle" in body:
                self._hold(body)
            else:
                self._transport.write(self._answers.receive)
        elif operation.endswith(b"Batch"):
            self._transport.write(self._answers.batch(body))
        else:
            self._transport.write(self._answers.describe(operation, body))

    def _answer_run(self, run: Run, operation: bytes, body: bytes) -> None:
        if operation == b"Report":
            self._transport.write(response(_compact(run.report())))
            return
        run.count(operation)
        if operation == b"ReceiveMessage":
            answer = run.receive()
            if answer is None:
                self._hold(body)
                run.waiting.append(self)
            else:
                self._transport.write(answer)
        elif operation == b"DeleteMessageBatch":
            run.delete(body)
            self._transport.write(self._answers.batch(body))
        elif operation == b"DeleteMessage":
            run.delete(body)
            self._transport.write(self._answers.empty)
        elif operation.endswith(b"Batch"):
            if operation == b"ChangeMessageVisibilityBatch":
                run.change_visibility(body)
            self._transport.write(self._answers.batch(body))
        else:
            self._transport.write(self._answers.describe(operation, body))

    def end_hold(self, answer: bytes) -> bool:
        """Answer a receive that is held. Returns whether there was one."""
        if self._held is None:
            return False
        self._held.cancel()
        self._held = None
        self._transport.write(answer)
        return True

    def _hold(self, body: bytes) -> None:
        asked = WAIT.search(body)
        self._held = self._loop.call_later(int(asked[1]) if asked else 0, self.end_hold, self._answers.empty)


def certificates(folder: Path) -> tuple[str, str]:
    """Make an authority and a certificate of its for 127.0.0.1, by the openssl command.

    Returns the file with the certificate and its key, and the file to trust. The two are not one, because clients on
    rustls take no authority for a server.
    """

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=stub authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=127.0.0.1", "-keyout", "stub.key", "-out", "stub.csr")
    (folder / "extensions").write_text(
        "basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=IP:127.0.0.1\n"
    )
    signed_by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "extensions"]
    openssl("x509", "-req", "-in", "stub.csr", *signed_by, "-out", "stub.crt")
    (folder / "stub.pem").write_text((folder / "stub.key").read_text() + (folder / "stub.crt").read_text())
    return str(folder / "stub.pem"), str(folder / "ca.pem")


async def serve(*, tls: ssl.SSLContext | None, announce: Callable[[int, int], None]) -> None:
    """Serve on two free ports of the loopback interface (the second only with ``tls``) until stdin ends."""
    loop = asyncio.get_running_loop()
    answers = Answers()
    plain = await loop.create_server(lambda: StubProtocol(answers, loop), "127.0.0.1", 0, backlog=1024)
    ports = [plain.sockets[0].getsockname()[1], 0]
    if tls is not None:
        secure = await loop.create_server(lambda: StubProtocol(answers, loop), "127.0.0.1", 0, backlog=1024, ssl=tls)
        ports[1] = secure.sockets[0].getsockname()[1]
    announce(*ports)
    await loop.run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Run the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tls", action="store_true", help="serve TLS as well, with a certificate made now")
    tls = None
    with tempfile.TemporaryDirectory() as folder:
        trusted = ""
        if parser.parse_args().tls:
            own, trusted = certificates(Path(folder))
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(own)

        def announce(port: int, tls_port: int) -> None:
            print(json.dumps({"port": port, "tls_port": tls_port, "certificate": trusted}), flush=True)

        try:
            import uvloop  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - halves its own cost where it is installed
        except ImportError:
            asyncio.run(serve(tls=tls, announce=announce))
        else:
            uvloop.run(serve(tls=tls, announce=announce))


class StubServer:
    """The stub in a process of its own: ``with StubServer(tls=True) as stub:``.

    Attributes:
        port, tls_port: where it listens on 127.0.0.1.
        certificate: the file to trust for TLS; gone when the server ends.
    """

    def __init__(self, *, tls: bool = False, cpu: int | None = None) -> None:
        self._command = [sys.executable, __file__, *(["--tls"] if tls else [])]
        if cpu is not None:
            self._command = ["taskset", "-c", str(cpu), *self._command]
        self.port = self.tls_port = 0
        self.certificate = ""

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def url(self) -> str:
        """The endpoint without TLS."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """The endpoint with TLS."""
        return f"https://127.0.0.1:{self.tls_port}"

    def report(self, queue: str) -> dict[str, Any]:
        """Return what a run's queue saw; see :meth:`Run.report`."""
        request = urllib.request.Request(  # noqa: S310 - the stub's own address
            self.url,
            data=_compact({"QueueUrl": self.queue_url(queue)}),
            headers={"X-Amz-Target": "AmazonSQS.Report"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return cast("dict[str, Any]", json.load(answer))

    @staticmethod
    def queue_url(name: str = "bench") -> str:
        """Return a queue's URL, which the stub takes from anywhere."""
        return f"http://127.0.0.1/{ACCOUNT}/{name}"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the stub server did not start (exit code {self._process.wait()})")
        said = json.loads(line)
        self.port, self.tls_port, self.certificate = said["port"], said["tls_port"], said["certificate"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate()


if __name__ == "__main__":
    main()

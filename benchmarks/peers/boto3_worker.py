"""boto3 in threads: each receives ten messages, handles them one after the other, and deletes them in one batch."""

import logging
import threading
from typing import Any

import boto3
import msgspec
from benchmarks.peers.orders import Order
from benchmarks.peers.work import Arguments, Work, arguments
from botocore.config import Config

THREADS = 8
log = logging.getLogger("worker")
decoder = msgspec.json.Decoder(Order)


class Worker:
    """What the threads share."""

    def __init__(self, told: Arguments) -> None:
        config = Config(max_pool_connections=THREADS, read_timeout=30)
        self._sqs: Any = boto3.client("sqs", endpoint_url=told.url, config=config)
        self._queue_url = told.queue_url
        self._lock = threading.Lock()
        self.finished = threading.Event()
        self._work = Work(told.messages, self.finished.set)

    def loop(self) -> None:
        """Consume until everything is acknowledged, or forever."""
        while not self.finished.is_set():
            answer = self._sqs.receive_message(
                QueueUrl=self._queue_url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=20,
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
            handled = [m["ReceiptHandle"] for m in answer.get("Messages", ()) if self._handle(m)]
            if not handled:
                continue
            entries = [{"Id": str(number), "ReceiptHandle": handle} for number, handle in enumerate(handled)]
            self._sqs.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)
            with self._lock:
                for _ in handled:
                    self._work.count()

    def _handle(self, message: dict[str, Any]) -> bool:
        try:
            order = decoder.decode(message["Body"])
            self._work.do_in_thread(order.order_id, order.note)
        except Exception:
            log.exception("message %s failed", message["MessageId"])
            return False
        return True


def main() -> None:
    """Run the threads. They are daemons: those in a long poll do not keep the process."""
    worker = Worker(arguments())
    for number in range(THREADS):
        threading.Thread(target=worker.loop, name=f"worker-{number}", daemon=True).start()
    worker.finished.wait()


if __name__ == "__main__":
    main()

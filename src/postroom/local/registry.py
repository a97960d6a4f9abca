"""Which queues exist: create, find, list, delete, and what one queue's attributes ask of another queue.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html
"""

import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from postroom.local.attributes import (
    DEFAULTS,
    FIFO_DEFAULTS,
    check_combination,
    check_queue_name,
    invalid_attribute,
    is_fifo,
    parse_redrive,
    validated,
)
from postroom.local.errors import BrokerError, invalid_value, missing_parameter, queue_does_not_exist
from postroom.local.ids import Ids
from postroom.local.options import BrokerOptions, Scope
from postroom.local.queue import LocalQueue

MAX_LISTED = 1_000

_ARN = re.compile(r"arn:aws[a-z-]*:sqs:([a-z0-9-]+):([0-9]{12}):([A-Za-z0-9_.-]{1,80})")
_ACCOUNT = re.compile(r"[0-9]{12}")
_HOST_REGION = re.compile(r"(?:sqs\.([a-z]{2}(?:-[a-z]+)+-\d)\.|([a-z]{2}(?:-[a-z]+)+-\d)\.queue\.)")
_CACHED_URLS = 10_000
_REMEMBERED_NAMES = 1_000


class Registry:
    """The queues of all accounts and regions."""

    def __init__(self, options: BrokerOptions, ids: Ids) -> None:
        self.options = options
        self._ids = ids
        self._queues: dict[Scope, dict[str, LocalQueue]] = {}
        self.deleted_at: dict[tuple[Scope, str], float] = {}
        """When queues were deleted, for as long as their names may not be used again."""
        self._by_url: dict[tuple[str, Scope], LocalQueue] = {}

    def __iter__(self) -> Iterator[LocalQueue]:
        for queues in self._queues.values():
            yield from queues.values()

    def create(
        self, name: str | None, attributes: Mapping[str, str], scope: Scope, now: float
    ) -> tuple[LocalQueue, bool]:
        """Make a queue, or return the one of that name; and whether it is new."""
        if name is None:
            raise missing_parameter("QueueName")
        fifo = is_fifo(attributes)
        check_queue_name(name, fifo=fifo)
        stored = {key: value for key, value in validated(attributes, fifo=fifo).items() if value}
        existing = self._queues.get(scope, {}).get(name)
        if existing is not None:
            _check_same(existing, stored)
            return existing, False
        self._check_recreation(name, scope, now)
        queue = LocalQueue(name, scope, uid=self._ids.queue(), attributes={}, now=now, fair=self.options.fair)
        # Before it is entered: a queue that is refused must not exist.
        self.check_references(queue, stored)
        queue.set_attributes({**self.options.queue_defaults, **_with_encryption(stored)}, now)
        self.add(queue)
        return queue, True

    def add(self, queue: LocalQueue) -> None:
        """Enter a queue that exists."""
        self._queues.setdefault(queue.scope, {})[queue.name] = queue

    def set_attributes(self, queue: LocalQueue, attributes: Mapping[str, str], now: float) -> None:
        """Check and store attributes of a queue that exists."""
        stored = validated(attributes, fifo=queue.fifo)
        if queue.fifo and stored.get("FifoQueue", "true") != "true":
            raise invalid_attribute("FifoQueue", "Modifying queue type is not supported.")
        self.check_references(queue, stored)
        queue.set_attributes(_with_encryption(stored), now)

    def delete(self, queue: LocalQueue, now: float) -> None:
        """Forget a queue and its messages."""
        del self._queues[queue.scope][queue.name]
        # All of them: a queue has several URLs.
        self._by_url.clear()
        if len(self.deleted_at) >= _REMEMBERED_NAMES:
            limit = now - self.options.recreate_after
            self.deleted_at = {key: at for key, at in self.deleted_at.items() if at > limit}
        self.deleted_at[queue.scope, queue.name] = now
        queue.clear(now)

    def by_name(self, name: str, scope: Scope) -> LocalQueue:
        """Return a queue by name. Raises QueueDoesNotExist."""
        queue = self._queues.get(scope, {}).get(name)
        if queue is None:
            raise queue_does_not_exist()
        return queue

    def by_url(self, url: str | None, scope: Scope) -> LocalQueue:
        """Return a queue by URL, whatever host it names; by name and by ARN as well."""
        if not url:
            raise missing_parameter("QueueUrl")
        queue = self._by_url.get((url, scope))
        if queue is None:
            name, where = locate(url, scope)
            queue = self.by_name(name, where)
            if len(self._by_url) >= _CACHED_URLS:
                self._by_url.clear()
            self._by_url[url, scope] = queue
        return queue

    def by_arn(self, arn: str) -> LocalQueue | None:
        """Return a queue by ARN, or None."""
        match = _ARN.fullmatch(arn)
        if match is None:
            return None
        region, account, name = match.groups()
        return self._queues.get(Scope(account, region), {}).get(name)

    def listed(self, scope: Scope, prefix: str | None) -> list[LocalQueue]:
        """Return the queues of a scope with names that start with a prefix, by name."""
        queues = self._queues.get(scope, {})
        return [queues[name] for name in sorted(queues) if name.startswith(prefix or "")]

    def sources(self, target: LocalQueue) -> list[LocalQueue]:
        """Return the queues that use a queue as their dead-letter queue, by name."""
        candidates = self.listed(target.scope, None)
        return [
            queue for queue in candidates if (redrive := queue.settings.redrive) and redrive.target_arn == target.arn
        ]

    def check_references(self, queue: LocalQueue, attributes: Mapping[str, str]) -> None:
        """Check what attributes say together, and of other queues. Raises InvalidParameterValue and its kin."""
        check_combination(queue.attributes, attributes)
        text = attributes.get("RedrivePolicy")
        if not text:
            return
        target = self.by_arn(parse_redrive(text).target_arn)
        if target is None:
            raise invalid_value("RedrivePolicy", text, "Dead letter target does not exist.")
        if target.scope != queue.scope:
            raise invalid_value("RedrivePolicy", text, "Dead-letter target owner and region should be the source's.")
        if target.fifo != queue.fifo:
            kind = "FIFO" if queue.fifo else "standard"
            raise invalid_value(
                "RedrivePolicy", text, f"The dead-letter queue of a {kind} queue must be a {kind} queue too."
            )
        if not target.settings.redrive_allow.allows(queue.arn):
            raise invalid_value(
                "RedrivePolicy", text, "The dead-letter queue's redrive-allow policy forbids this source."
            )

    def _check_recreation(self, name: str, scope: Scope, now: float) -> None:
        # Taken out first: a name that is free again need not be remembered.
        deleted_at = self.deleted_at.pop((scope, name), None)
        if deleted_at is not None and now < deleted_at + self.options.recreate_after:
            self.deleted_at[scope, name] = deleted_at
            text = "You must wait 60 seconds after deleting a queue before you can create another with the same name."
            raise BrokerError("QueueDeletedRecently", text)


def _check_same(queue: LocalQueue, wanted: Mapping[str, str]) -> None:
    present = {**DEFAULTS, **(FIFO_DEFAULTS if queue.fifo else {}), **queue.attributes}
    for name, value in wanted.items():
        if present.get(name) != value:
            text = f"A queue already exists with the same name and a different value for attribute {name}"
            raise BrokerError("QueueNameExists", text)


def _with_encryption(attributes: Mapping[str, str]) -> dict[str, str]:
    """A KMS key takes the place of SQS's own encryption, which is on by default."""
    result = dict(attributes)
    if result.get("KmsMasterKeyId"):
        result.setdefault("SqsManagedSseEnabled", "false")
    return result


def locate(url: str, scope: Scope) -> tuple[str, Scope]:
    """Return the name and the scope of a queue URL, an ARN or a name.

    URLs: ``http://host/account/name``, ``https://sqs.region.amazonaws.com/account/name``, the older
    ``https://region.queue.amazonaws.com/account/name``, and ``http://host/queue/region/account/name``. The region is
    the caller's where the URL does not say it.
    """
    if match := _ARN.fullmatch(url):
        region, account, name = match.groups()
        return name, Scope(account, region)
    if "/" not in url:
        return url, scope
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:  # such as half an IPv6 address
        raise BrokerError("InvalidAddress", f"The address {url} is not valid for this endpoint.") from None
    segments = [segment for segment in parts.path.split("/") if segment]
    if not segments:  # an endpoint, not a queue
        raise queue_does_not_exist()
    region = scope.region
    if match := _HOST_REGION.match(host):
        region = match.group(1) or match.group(2)
    if len(segments) == 4 and segments[0] == "queue":
        region = segments[1]
        segments = segments[2:]
    if len(segments) != 2 or not _ACCOUNT.fullmatch(segments[0]):
        raise BrokerError("InvalidAddress", f"The address {url} is not valid for this endpoint.")
    return segments[1], Scope(segments[0], region)


def page(names: list[str], max_results: int | None, token: str | None) -> tuple[list[str], str | None]:
    """Return one page of sorted names and the token of the next; only who sets MaxResults gets a token."""
    if max_results is not None and not 1 <= max_results <= MAX_LISTED:
        raise invalid_value("MaxResults", max_results, f"Must be between 1 and {MAX_LISTED}.")
    if token:
        try:
            after = b64decode(token, altchars=b"-_", validate=True).decode()
        except ValueError:
            raise invalid_value("NextToken", token[:80], "It is not a token that was returned.") from None
        # The token names what was shown last, so a queue that comes or goes between two pages shifts nothing.
        names = [name for name in names if name > after]
    size = max_results or MAX_LISTED
    chosen = names[:size]
    more = max_results is not None and len(names) > size
    return chosen, urlsafe_b64encode(chosen[-1].encode()).decode() if more else None

"""What a local broker can be told, in one frozen object that travels unchanged from the caller to where it counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

from postroom.checking import check_flag, check_kind, check_number, check_options, check_path
from postroom.errors import ConfigurationError
from postroom.local.attributes import DEFAULTS, validated
from postroom.local.errors import BrokerError
from postroom.local.fair import FairPolicy


class Scope(NamedTuple):
    """An account and a region: queues of one name in two scopes have nothing to do with each other."""

    account: str = "000000000000"
    region: str = "us-east-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerOptions:
    """How a local broker behaves. Every default is what SQS does.

    Raises ``ConfigurationError`` for a value that cannot work.
    """

    scope: Scope = Scope()  # noqa: RUF009 - immutable
    """Account and region of queues that are named without them."""
    fair: FairPolicy = FairPolicy()  # noqa: RUF009 - immutable
    """When a tenant of a standard queue counts as noisy."""
    recreate_after: float = 60.0
    """Seconds for which the name of a deleted queue cannot be used again."""
    old_handles_delete: bool = False
    """Whether DeleteMessage on a standard queue deletes with the handle of an earlier receive.

    The API Reference says that such a request succeeds and deletes nothing, and that is the default: a consumer that
    works on with a message it has lost then shows it. Some callers have seen SQS delete the message.
    """
    queue_defaults: Mapping[str, str] = field(default_factory=dict[str, str])
    """Attributes of new queues that do not set them, by their SQS names, such as ``MaximumMessageSize``."""
    time_scale: float = 1.0
    """How many of the broker's seconds pass in one second."""
    seed: int | None = None
    """Makes message ids repeatable."""
    epoch: float | None = None
    """The broker's time when it opens, in seconds since 1970; None for the time of the clock."""
    persist: str | Path | None = None
    """A file that keeps everything; it survives a kill of the process."""

    def __post_init__(self) -> None:
        check_kind("LocalBroker(scope=...)", self.scope, Scope, 'Scope("000000000000", "eu-west-1")')
        check_kind("LocalBroker(fair=...)", self.fair, FairPolicy, "FairPolicy(share=0.1)")
        check_flag("LocalBroker(old_handles_delete=...)", self.old_handles_delete)
        example = 'queue_defaults={"VisibilityTimeout": "60"}'
        check_kind("LocalBroker(queue_defaults=...)", self.queue_defaults, Mapping, example)
        check_options("LocalBroker(queue_defaults=...)", self.queue_defaults, example)
        for name in ("time_scale", "recreate_after"):
            check_number(f"LocalBroker({name}=...)", getattr(self, name))
        if self.epoch is not None:
            check_number("LocalBroker(epoch=...)", self.epoch)
        if self.persist is not None:
            check_path("LocalBroker(persist=...)", self.persist, 'persist="sqs.jsonl"')
        if not self.time_scale > 0:
            raise ConfigurationError(f"LocalBroker(time_scale={self.time_scale}): must be above 0; 1 is real time")
        if not self.recreate_after >= 0:
            raise ConfigurationError(f"LocalBroker(recreate_after={self.recreate_after}): must not be negative")
        if unknown := sorted(self.queue_defaults.keys() - DEFAULTS.keys()):
            raise ConfigurationError(f"queue_defaults: {unknown[0]} is none of {', '.join(DEFAULTS)}")
        try:
            validated(self.queue_defaults, fifo=False)
        except BrokerError as error:
            raise ConfigurationError(f"queue_defaults: {error.message}") from error


class Changes(TypedDict, total=False):
    """The options by keyword, for callers that set one or two of them."""

    scope: Scope
    fair: FairPolicy
    recreate_after: float
    old_handles_delete: bool
    queue_defaults: Mapping[str, str]
    time_scale: float
    seed: int | None
    epoch: float | None
    persist: str | Path | None


def with_changes(options: BrokerOptions | None, **changes: Unpack[Changes]) -> BrokerOptions:
    """Return options with some of them replaced. Raises TypeError for a name that is no option."""
    known = {each.name for each in fields(BrokerOptions)}
    if unknown := sorted(changes.keys() - known):
        raise TypeError(f"LocalBroker has no option {unknown[0]!r}: it has {', '.join(sorted(known))}")
    if options is not None:
        check_kind("LocalBroker(options)", options, BrokerOptions, "LocalBroker(BrokerOptions(seed=1))")
    return replace(options or BrokerOptions(), **changes)

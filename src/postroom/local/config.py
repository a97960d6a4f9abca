"""``queues.toml``: which queues ``postroom local`` makes when it starts.

[queues.orders-dlq]

[queues.orders]
VisibilityTimeout = 60              # any attribute of SQS, by its own name
dead_letter = "orders-dlq"          # short for RedrivePolicy
max_receive_count = 5
tags = { team = "billing" }

[queues."payments.fifo"]            # the suffix makes it a FIFO queue
ContentBasedDeduplication = true
"""

import tomllib
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from postroom.errors import ConfigurationError
from postroom.local.errors import BrokerError
from postroom.local.inprocess import LocalBroker

_DEFAULT_MAX_RECEIVES = 10
_OWN_KEYS = (
    ("dead_letter", str, '"orders-dlq"'),
    ("max_receive_count", int, "5"),
    ("tags", dict, '{ team = "billing" }'),
)


class QueueSpec(NamedTuple):
    """One queue to make."""

    name: str
    attributes: Mapping[str, str]
    tags: Mapping[str, str]
    dead_letter: str | None
    max_receive_count: int


def load_queues(path: Path) -> list[QueueSpec]:
    """Read a ``queues.toml``; dead-letter queues come before those that need them. Raises ConfigurationError."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    try:
        tables = msgspec.convert(document.get("queues"), dict[str, dict[str, Any]])
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: write one table [queues.NAME] per queue") from error
    specs = [_checked(path, name, table) for name, table in tables.items()]
    return _in_order(path, {spec.name: spec for spec in specs})


def _in_order(path: Path, specs: Mapping[str, QueueSpec]) -> list[QueueSpec]:
    """Return dead-letter queues before the queues that need them: they may have one of their own."""
    needs = {name: () if spec.dead_letter is None else (spec.dead_letter,) for name, spec in specs.items()}
    try:
        return [specs[name] for name in TopologicalSorter(needs).static_order() if name in specs]
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise ConfigurationError(f"{path}: dead letters would go in a circle: {circle}") from None


def _checked(path: Path, name: str, table: Mapping[str, Any]) -> QueueSpec:
    where = f"{path}: [queues.{name}]"
    for key, kind, example in _OWN_KEYS:
        if key in table and type(table[key]) is not kind:
            raise ConfigurationError(f"{where}: write {key} = {example}; got {table[key]!r}")
    if "max_receive_count" in table and "dead_letter" not in table:
        raise ConfigurationError(f'{where}: max_receive_count needs dead_letter = "NAME" beside it')
    for key, value in table.get("tags", {}).items():
        if not isinstance(value, str):
            raise ConfigurationError(
                f'{where}: a tag is a text: write tags = {{ {key} = "..." }}; got {key} = {value!r}'
            )
    return _spec(name, table)


def _spec(name: str, table: Mapping[str, Any]) -> QueueSpec:
    attributes = {
        key: _text(value) for key, value in table.items() if key not in {"tags", "dead_letter", "max_receive_count"}
    }
    if name.endswith(".fifo"):
        attributes.setdefault("FifoQueue", "true")
    return QueueSpec(
        name,
        attributes,
        table.get("tags", {}),
        table.get("dead_letter"),
        table.get("max_receive_count", _DEFAULT_MAX_RECEIVES),
    )


def _text(value: Any) -> str:
    """Return a value of TOML as SQS takes it: everything is text, a table is JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    return msgspec.json.encode(value).decode()


def make_queues(broker: LocalBroker, specs: list[QueueSpec]) -> None:
    """Make queues, or give queues that are there already the attributes and tags they should have.

    Raises ConfigurationError with the name of the queue that SQS would refuse.
    """
    for spec in specs:
        try:
            _make(broker, spec)
        except BrokerError as error:
            hint = "; the keys beside SQS's own are dead_letter, max_receive_count and tags" * (
                "Attribute" in error.message
            )
            raise ConfigurationError(f"queue {spec.name!r}: {error.message}{hint}") from error


def _make(broker: LocalBroker, spec: QueueSpec) -> None:
    attributes = dict(spec.attributes)
    if spec.dead_letter is not None:
        names = [queue.name for queue in broker.list_queues()]
        if spec.dead_letter not in names:
            text = f"queue {spec.name!r}: its dead_letter {spec.dead_letter!r} is no queue"
            raise ConfigurationError(f"{text}; those that exist are {', '.join(names) or 'none'}")
        policy = {"deadLetterTargetArn": broker.queue(spec.dead_letter).arn, "maxReceiveCount": spec.max_receive_count}
        attributes["RedrivePolicy"] = msgspec.json.encode(policy).decode()
    try:
        broker.create_queue(spec.name, attributes, spec.tags)
    except BrokerError as error:
        if error.kind != "QueueNameExists":
            raise
        attributes.pop("FifoQueue", None)
        broker.set_attributes(spec.name, attributes)
    queue = broker.queue(spec.name)
    if not spec.tags.items() <= queue.tags.items():  # CreateQueue does not tag a queue that is there already
        broker.engine.tag_queue(queue, spec.tags)

"""A mistake in ``queues.toml`` is refused with the file or the queue, the key, and what to write."""

from pathlib import Path

import pytest

from postroom import ConfigurationError
from postroom.local import LocalBroker
from postroom.local.config import load_queues, make_queues


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[queues.dlq]\n[queues.orders]\ndead_letter = "dql"', r"queue 'orders': its dead_letter 'dql' is no queue"),
        ('[queues.dlq]\n[queues.orders]\ndead_leter = "dlq"', r"queue 'orders': .*dead_leter.*keys.*dead_letter, max"),
        (
            '[queues.orders]\ndead_letter = "dlq"\nmax_receive_count = "3"',
            r"queues.toml: \[queues.orders\]: write max_receive_count = 5; got '3'",
        ),
        ("[queues.orders]\nmax_receive_count = 3", r"max_receive_count needs dead_letter"),
        ("[queue.orders]", r"queues.toml: write one table \[queues.NAME\] per queue$"),
        ('[queues.orders]\ntags = "x"', r"\[queues.orders\]: write tags = { team"),
    ],
)
async def test_a_mistake_is_named_where_it_is(tmp_path: Path, text: str, said: str) -> None:
    """One line that says what to change."""
    path = tmp_path / "queues.toml"
    path.write_text(text)
    async with LocalBroker() as broker:
        with pytest.raises(ConfigurationError, match=said):
            make_queues(broker, load_queues(path))


async def test_a_queue_that_is_there_already_gets_what_the_file_says_of_it(tmp_path: Path) -> None:
    """Attributes and tags, as with ``--persist``; what the file does not name stays."""
    path = tmp_path / "queues.toml"
    async with LocalBroker() as broker:
        for seconds, tags in (
            (60, '{ team = "billing", stage = "test" }'),
            (60, '{ team = "sales" }'),
            (9, "{ a = 'b' }"),
        ):
            path.write_text(f"[queues.orders]\nVisibilityTimeout = {seconds}\ntags = {tags}")
            make_queues(broker, load_queues(path))
        orders = broker.queue("orders")
        assert orders.attributes["VisibilityTimeout"] == "9"
        assert orders.tags == {"team": "sales", "stage": "test", "a": "b"}
        path.write_text("[queues.orders]\ntags = { 'aws:a' = 'b' }")
        with pytest.raises(ConfigurationError, match=r"queue 'orders': .*aws:"):
            make_queues(broker, load_queues(path))


async def test_dead_letters_may_have_dead_letters(tmp_path: Path) -> None:
    """The file names them in any order."""
    path = tmp_path / "queues.toml"
    path.write_text('[queues.a]\ndead_letter = "b"\n[queues.b]\ndead_letter = "c"\n[queues.c]')
    async with LocalBroker() as broker:
        make_queues(broker, load_queues(path))
        assert "RedrivePolicy" in broker.queue("b").attributes
        assert sorted(queue.name for queue in broker.list_queues()) == ["a", "b", "c"]


def test_a_circle_of_dead_letters_is_refused(tmp_path: Path) -> None:
    """It is named."""
    path = tmp_path / "queues.toml"
    path.write_text('[queues.a]\ndead_letter = "b"\n[queues.b]\ndead_letter = "a"')
    with pytest.raises(ConfigurationError, match=r"queues.toml: dead letters would go in a circle: [ab] -> [ab] -> "):
        load_queues(path)

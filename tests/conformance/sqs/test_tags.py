"""Tags: set at creation or later, overwritten, removed."""

from typing import Any

import pytest

from conformance.sqs.checks import page, refused, unique


def tags_of(sqs: Any, url: str) -> dict[str, str]:
    """Return the queue's tags."""
    found: dict[str, str] = sqs.list_queue_tags(QueueUrl=url).get("Tags", {})
    return found


@page("API_CreateQueue")
def test_tags_at_creation(either_sqs: Any) -> None:
    """A queue can be created with tags."""
    url = either_sqs.create_queue(QueueName=unique(), tags={"team": "post", "Team": "room"})["QueueUrl"]
    try:
        assert tags_of(either_sqs, url) == {"team": "post", "Team": "room"}
    finally:
        either_sqs.delete_queue(QueueUrl=url)


@page("API_ListQueueTags")
def test_no_tags(either_sqs: Any, queue: str) -> None:
    """A queue without tags has none to list."""
    assert tags_of(either_sqs, queue) == {}


@page("API_TagQueue")
def test_tags_are_added_and_overwritten(either_sqs: Any, queue: str) -> None:
    """A new tag is added, and one with a known key takes the place of the old one."""
    either_sqs.tag_queue(QueueUrl=queue, Tags={"a": "1", "b": "2"})
    either_sqs.tag_queue(QueueUrl=queue, Tags={"b": "3", "c": "4"})
    assert tags_of(either_sqs, queue) == {"a": "1", "b": "3", "c": "4"}


@page("API_TagQueue")
def test_keys_are_case_sensitive(sqs: Any, queue: str) -> None:
    """Keys that differ in case only are two keys."""
    sqs.tag_queue(QueueUrl=queue, Tags={"key": "1", "KEY": "2"})
    assert tags_of(sqs, queue) == {"key": "1", "KEY": "2"}


@page("quotas-queues")
def test_values_may_be_empty(either_sqs: Any, queue: str) -> None:
    """A value may be empty."""
    either_sqs.tag_queue(QueueUrl=queue, Tags={"flag": ""})
    assert tags_of(either_sqs, queue) == {"flag": ""}


@page("quotas-queues")
def test_unicode_and_punctuation(either_sqs: Any, queue: str) -> None:
    """Keys and values hold Unicode letters, white space and some punctuation."""
    tags = {"Größe/é_.:=+-@": "ключ 値 _.:/=+-@"}
    either_sqs.tag_queue(QueueUrl=queue, Tags=tags)
    assert tags_of(either_sqs, queue) == tags


@page("API_UntagQueue")
def test_untag(either_sqs: Any, queue: str) -> None:
    """UntagQueue removes the named keys, and does not mind an unknown one."""
    either_sqs.tag_queue(QueueUrl=queue, Tags={"a": "1", "b": "2"})
    either_sqs.untag_queue(QueueUrl=queue, TagKeys=["a", "unknown"])
    assert tags_of(either_sqs, queue) == {"b": "2"}


@page("quotas-queues")
def test_lengths_at_their_limits(sqs: Any, queue: str) -> None:
    """A key may have 128 characters and a value 256."""
    tags = {"k" * 128: "v" * 256}
    sqs.tag_queue(QueueUrl=queue, Tags=tags)
    assert tags_of(sqs, queue) == tags


@page("quotas-queues")
@pytest.mark.parametrize(
    "tags",
    [{"k" * 129: "v"}, {"k": "v" * 257}, {"": "v"}, {"aws:mine": "v"}],
    ids=["long-key", "long-value", "empty-key", "reserved-prefix"],
)
def test_forbidden_tags(sqs: Any, queue: str, tags: dict[str, str]) -> None:
    """Longer keys and values, an empty key and the prefix aws: are refused."""
    refused(sqs.tag_queue, QueueUrl=queue, Tags=tags)
    assert tags_of(sqs, queue) == {}


@page("API_TagQueue")
@pytest.mark.parametrize("call", ["tag", "untag", "list"])
def test_tags_of_a_missing_queue(sqs: Any, queue: str, call: str) -> None:
    """All three actions raise QueueDoesNotExist for a missing queue."""
    missing = queue + "-never"
    if call == "tag":
        refusal = refused(sqs.tag_queue, QueueUrl=missing, Tags={"a": "1"})
    elif call == "untag":
        refusal = refused(sqs.untag_queue, QueueUrl=missing, TagKeys=["a"])
    else:
        refusal = refused(sqs.list_queue_tags, QueueUrl=missing)
    assert isinstance(refusal.error, sqs.exceptions.QueueDoesNotExist)

"""Isolation: regions and accounts keep their queues to themselves."""

from collections.abc import Iterator
from typing import Any

import pytest

from conformance.sqs.checks import MakeQueue, arn, bodies, page, receive, refused, unique
from conformance.sqs.clients import Target, open_client
from conformance.sqs.wire import path_of

REGIONS = "sqs-making-api-requests-json"
NAMES = "sqs-queue-message-identifiers"


@pytest.fixture(scope="session")
def abroad(target: Target) -> Iterator[Any]:
    """Give a client of the same account in another region."""
    with open_client(target, region=target.other_region) as client:
        yield client


@pytest.fixture(scope="session")
def stranger(target: Target) -> Iterator[Any]:
    """Give a client of another account in the same region."""
    keys = {"access_key": target.other_access_key, "secret_key": target.other_secret_key}
    with open_client(target, **keys) as client:
        yield client


@page(REGIONS)
def test_regions_share_no_queue(sqs: Any, abroad: Any, target: Target, make_queue: MakeQueue) -> None:
    """Two queues of one name in two regions are two queues."""
    name = unique()
    here, there = make_queue(name=name), make_queue(name=name, client=abroad)
    sqs.send_message(QueueUrl=here, MessageBody="x")
    assert receive(abroad, there, wait=0) == []
    assert bodies(receive(sqs, here)) == ["x"]
    assert f":{target.region}:" in arn(sqs, here)
    assert f":{target.other_region}:" in arn(abroad, there)


@page("API_ListQueues")
def test_lists_are_of_one_region(sqs: Any, abroad: Any, make_queue: MakeQueue) -> None:
    """ListQueues lists the queues of its own region."""
    prefix = unique()
    here, there = make_queue(name=prefix + "-1"), make_queue(name=prefix + "-2", client=abroad)
    assert sqs.list_queues(QueueNamePrefix=prefix)["QueueUrls"] == [here]
    assert abroad.list_queues(QueueNamePrefix=prefix)["QueueUrls"] == [there]


@page("API_GetQueueUrl")
def test_names_are_of_one_region(abroad: Any, make_queue: MakeQueue) -> None:
    """A name is known in its own region only."""
    name = unique()
    make_queue(name=name)
    refusal = refused(abroad.get_queue_url, QueueName=name)
    assert isinstance(refusal.error, abroad.exceptions.QueueDoesNotExist)


@page(NAMES)
def test_accounts_share_no_queue(sqs: Any, stranger: Any, make_queue: MakeQueue) -> None:
    """Two queues of one name in two accounts are two queues, with two URLs."""
    name = unique()
    ours, theirs = make_queue(name=name), make_queue(name=name, client=stranger)
    assert path_of(ours) != path_of(theirs)
    assert arn(sqs, ours) != arn(stranger, theirs)
    sqs.send_message(QueueUrl=ours, MessageBody="x")
    assert receive(stranger, theirs, wait=0) == []
    assert bodies(receive(sqs, ours)) == ["x"]


@page("API_ListQueues")
def test_lists_are_of_one_account(sqs: Any, stranger: Any, make_queue: MakeQueue) -> None:
    """ListQueues lists the queues of its own account."""
    prefix = unique()
    ours = make_queue(name=prefix)
    assert sqs.list_queues(QueueNamePrefix=prefix)["QueueUrls"] == [ours]
    assert not stranger.list_queues(QueueNamePrefix=prefix).get("QueueUrls")


@page("API_GetQueueUrl")
def test_names_are_of_one_account(stranger: Any, make_queue: MakeQueue) -> None:
    """A name is known in its own account only."""
    name = unique()
    make_queue(name=name)
    refusal = refused(stranger.get_queue_url, QueueName=name)
    assert isinstance(refusal.error, stranger.exceptions.QueueDoesNotExist)

"""Queues: create, find, list and delete."""

from typing import Any

import pytest

from conformance.sqs.checks import MakeQueue, eventually, page, refused, unique
from conformance.sqs.wire import path_of


@page("sqs-queue-message-identifiers")
def test_url_holds_account_and_name(either_sqs: Any, make_queue: MakeQueue) -> None:
    """A queue URL ends with the account's number and the queue's name."""
    name = unique()
    account, last = path_of(make_queue(name=name, client=either_sqs)).strip("/").split("/")[-2:]
    assert last == name
    assert len(account) == 12
    assert account.isdigit()


@page("API_GetQueueUrl")
def test_get_queue_url_finds_by_name(either_sqs: Any, queue: str) -> None:
    """GetQueueUrl returns the URL that CreateQueue returned."""
    assert either_sqs.get_queue_url(QueueName=queue.rpartition("/")[2])["QueueUrl"] == queue


@page("API_GetQueueUrl")
def test_get_queue_url_accepts_the_owner(sqs: Any, queue: str) -> None:
    """GetQueueUrl takes the owner's account number."""
    account, name = path_of(queue).strip("/").split("/")[-2:]
    assert sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"] == queue


@page("API_GetQueueUrl")
def test_get_queue_url_of_a_missing_queue(either_sqs: Any) -> None:
    """GetQueueUrl of an unknown name raises QueueDoesNotExist."""
    refusal = refused(either_sqs.get_queue_url, QueueName=unique())
    assert isinstance(refusal.error, either_sqs.exceptions.QueueDoesNotExist)
    assert (refusal.code, refusal.status) == ("AWS.SimpleQueueService.NonExistentQueue", 400)


@page("API_CreateQueue")
def test_create_again_with_the_same_attributes(either_sqs: Any, make_queue: MakeQueue) -> None:
    """Creating a queue again with the same attributes returns the existing URL."""
    name = unique()
    first = make_queue(name=name, VisibilityTimeout=7, client=either_sqs)
    assert make_queue(name=name, VisibilityTimeout=7, client=either_sqs) == first


@page("API_CreateQueue", recorded=True)
def test_create_again_without_attributes(make_queue: MakeQueue) -> None:
    """Creating a queue again without attributes returns the existing URL: nothing that was named differs."""
    name = unique()
    first = make_queue(name=name, VisibilityTimeout=7)
    assert make_queue(name=name) == first


@page("API_CreateQueue", recorded=True)
def test_create_again_with_defaults_written_out(make_queue: MakeQueue) -> None:
    """Writing out a default value is the same as leaving it out."""
    name = unique()
    first = make_queue(name=name)
    assert make_queue(name=name, VisibilityTimeout=30, DelaySeconds=0) == first


@page("API_CreateQueue")
def test_create_again_with_other_attributes(either_sqs: Any, make_queue: MakeQueue) -> None:
    """Creating a queue again with another value raises QueueNameExists with the code QueueAlreadyExists."""
    name = unique()
    make_queue(name=name, VisibilityTimeout=7)
    refusal = refused(either_sqs.create_queue, QueueName=name, Attributes={"VisibilityTimeout": "8"})
    assert isinstance(refusal.error, either_sqs.exceptions.QueueNameExists)
    assert (refusal.code, refusal.status, refusal.sender) == ("QueueAlreadyExists", 400, True)


@page("API_CreateQueue", recorded=True)
def test_create_again_compares_with_current_values(sqs: Any, make_queue: MakeQueue) -> None:
    """What SetQueueAttributes changed is what a second CreateQueue is compared with."""
    name = unique()
    url = make_queue(name=name, VisibilityTimeout=7)
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "9"})
    assert make_queue(name=name, VisibilityTimeout=9) == url
    assert refused(sqs.create_queue, QueueName=name, Attributes={"VisibilityTimeout": "7"}).code == "QueueAlreadyExists"


@page("API_CreateQueue")
def test_name_of_eighty_characters(make_queue: MakeQueue) -> None:
    """A name may have 80 characters: letters, digits, hyphens and underscores."""
    name = (unique() + "_" + "Az09-_" * 20)[:80]
    assert make_queue(name=name).endswith("/" + name)


@page("sqs-xml-api-responses")
@pytest.mark.parametrize(
    "name",
    ["x" * 81, "with space", "with.dot", "with/slash", "with:colon", "with-ümlaut", "with!bang"],
    ids=["81-characters", "space", "dot", "slash", "colon", "umlaut", "bang"],
)
def test_forbidden_names(sqs: Any, name: str) -> None:
    """Any other name is refused as InvalidParameterValue."""
    assert refused(sqs.create_queue, QueueName=name).code == "InvalidParameterValue"


@page("quotas-queues")
def test_names_are_case_sensitive(make_queue: MakeQueue) -> None:
    """Names that differ in case only name two queues."""
    name = unique()
    assert make_queue(name=name + "-test") != make_queue(name=name + "-Test")


@page("quotas-fifo", recorded=True)
def test_fifo_queue_needs_the_suffix(sqs: Any) -> None:
    """A FIFO queue with a name that does not end with .fifo is refused."""
    assert (
        refused(sqs.create_queue, QueueName=unique(), Attributes={"FifoQueue": "true"}).code == "InvalidParameterValue"
    )


@page("quotas-fifo", recorded=True)
def test_suffix_needs_a_fifo_queue(sqs: Any) -> None:
    """A standard queue's name cannot end with .fifo."""
    assert refused(sqs.create_queue, QueueName=unique() + ".fifo").code == "InvalidParameterValue"


@page("quotas-fifo")
def test_suffix_counts_towards_the_name(sqs: Any, make_queue: MakeQueue) -> None:
    """The suffix counts towards the 80 characters of a name."""
    stem = (unique() + "x" * 80)[:75]
    make_queue(name=stem + ".fifo", fifo=True)
    refused(sqs.create_queue, QueueName=stem + "x.fifo", Attributes={"FifoQueue": "true"})


@page("API_DeleteQueue")
def test_deleted_queue_is_gone(either_sqs: Any, make_queue: MakeQueue) -> None:
    """A deleted queue does not exist any longer, by name or by URL."""
    url = make_queue()
    either_sqs.delete_queue(QueueUrl=url)

    def code() -> str:
        try:
            either_sqs.get_queue_url(QueueName=url.rpartition("/")[2])
        except either_sqs.exceptions.QueueDoesNotExist:
            return "gone"
        return "there"

    eventually(code, "gone")
    refusal = refused(either_sqs.send_message, QueueUrl=url, MessageBody="late")
    assert isinstance(refusal.error, either_sqs.exceptions.QueueDoesNotExist)


@page("API_DeleteQueue")
def test_delete_of_a_missing_queue(sqs: Any, queue: str) -> None:
    """Deleting a queue that never was raises QueueDoesNotExist."""
    refusal = refused(sqs.delete_queue, QueueUrl=queue + "-never")
    assert isinstance(refusal.error, sqs.exceptions.QueueDoesNotExist)


@page("API_CreateQueue")
def test_name_rests_for_a_minute_after_delete(sqs: Any, make_queue: MakeQueue) -> None:
    """A name cannot be used again within 60 seconds of its queue's deletion: QueueDeletedRecently."""
    url = make_queue()
    sqs.delete_queue(QueueUrl=url)
    refusal = refused(sqs.create_queue, QueueName=url.rpartition("/")[2])
    assert isinstance(refusal.error, sqs.exceptions.QueueDeletedRecently)
    assert (refusal.code, refusal.status) == ("AWS.SimpleQueueService.QueueDeletedRecently", 400)


@page("API_ListQueues")
def test_list_with_a_prefix(either_sqs: Any, make_queue: MakeQueue) -> None:
    """ListQueues with a prefix returns those queues and no others."""
    prefix = unique("list")
    expected = {make_queue(name=f"{prefix}-{n}") for n in range(2)}
    make_queue(name=unique("other"))
    eventually(lambda: set(either_sqs.list_queues(QueueNamePrefix=prefix).get("QueueUrls", [])), expected)


@page("API_ListQueues")
def test_list_prefix_is_case_sensitive(sqs: Any, make_queue: MakeQueue) -> None:
    """A prefix in another case finds nothing, and nothing found is no error."""
    prefix = unique("Case")
    make_queue(name=prefix)
    assert sqs.list_queues(QueueNamePrefix=prefix.lower()).get("QueueUrls", []) == []


@page("API_ListQueues")
def test_list_in_pages(either_sqs: Any, make_queue: MakeQueue) -> None:
    """MaxResults and NextToken walk over all queues, each once, and the last page has no token."""
    prefix = unique("page")
    expected = sorted(make_queue(name=f"{prefix}-{n}") for n in range(5))
    pages: list[list[str]] = []
    token: dict[str, str] = {}
    while True:
        answer = either_sqs.list_queues(QueueNamePrefix=prefix, MaxResults=2, **token)
        pages.append(answer["QueueUrls"])
        if not answer.get("NextToken"):
            break
        token = {"NextToken": answer["NextToken"]}
        assert len(pages) < 5
    assert [len(urls) for urls in pages] == [2, 2, 1]
    assert sorted(url for urls in pages for url in urls) == expected


@page("API_ListQueues")
def test_list_without_a_limit_has_no_token(sqs: Any, make_queue: MakeQueue) -> None:
    """Without MaxResults there is no NextToken."""
    prefix = unique("token")
    for n in range(3):
        make_queue(name=f"{prefix}-{n}")
    assert not sqs.list_queues(QueueNamePrefix=prefix).get("NextToken")


@page("API_ListQueues")
@pytest.mark.parametrize("limit", [0, 1001])
def test_list_limit_is_bounded(sqs: Any, limit: int) -> None:
    """MaxResults is 1 to 1000."""
    refused(sqs.list_queues, MaxResults=limit)

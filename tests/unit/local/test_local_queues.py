"""Queues: create, find, list, attributes, tags, permissions, accounts and regions."""

import dataclasses
from typing import Any

import msgspec
import pytest

from postroom.errors import ConfigurationError
from postroom.local import Broker, BrokerError, BrokerOptions, LocalBroker, Scope
from postroom.local.options import Changes
from postroom.local.registry import locate
from postroom.local.shapes import AddPermission
from unit.local.bench import START, Bench


def test_created_once(bench: Bench) -> None:
    """Creating a queue again with what it has returns it; with another value it is refused."""
    queue = bench.queue("q", VisibilityTimeout="40")
    assert bench.queue("q", VisibilityTimeout="40") is queue
    assert bench.queue("q", MessageRetentionPeriod="345600") is queue
    assert bench.queue("q") is queue
    with pytest.raises(BrokerError) as caught:
        bench.queue("q", VisibilityTimeout="41")
    assert (caught.value.kind, caught.value.code) == ("QueueNameExists", "QueueAlreadyExists")


@pytest.mark.parametrize("name", ["", "a b", "x" * 81, "q.standard", "é", "a/b"])
def test_names(bench: Bench, name: str) -> None:
    """Names have 1 to 80 letters, digits, hyphens and underscores."""
    with pytest.raises(BrokerError) as caught:
        bench.queue(name)
    assert caught.value.code == "InvalidParameterValue"


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("q.fifo", {}),
        ("q", {"FifoQueue": "true"}),
        ("q", {"FifoQueue": "false"}),
        (".fifo", {"FifoQueue": "true"}),
        ("x" * 76 + ".fifo", {"FifoQueue": "true"}),
    ],
)
def test_type_and_name_agree(bench: Bench, name: str, attributes: dict[str, str]) -> None:
    """The suffix .fifo and the attribute FifoQueue come together or not at all."""
    with pytest.raises(BrokerError):
        bench.broker.create_queue(name, attributes)


def test_defaults(bench: Bench) -> None:
    """A queue that was given nothing has SQS's defaults."""
    attributes = bench.broker.get_attributes(bench.queue("q"), ["All"])
    assert attributes == {
        "QueueArn": "arn:aws:sqs:us-east-1:000000000000:q",
        "ApproximateNumberOfMessages": "0",
        "ApproximateNumberOfMessagesNotVisible": "0",
        "ApproximateNumberOfMessagesDelayed": "0",
        "CreatedTimestamp": str(int(START)),
        "LastModifiedTimestamp": str(int(START)),
        "VisibilityTimeout": "30",
        "MaximumMessageSize": "1048576",
        "MessageRetentionPeriod": "345600",
        "DelaySeconds": "0",
        "ReceiveMessageWaitTimeSeconds": "0",
        "SqsManagedSseEnabled": "true",
    }


def test_fifo_defaults(bench: Bench) -> None:
    """A FIFO queue has four attributes more."""
    attributes = bench.broker.get_attributes(bench.queue("q.fifo"), ["All"])
    names = ("FifoQueue", "ContentBasedDeduplication", "DeduplicationScope", "FifoThroughputLimit")
    assert [attributes[name] for name in names] == ["true", "false", "queue", "perQueue"]


def test_asked_attributes(bench: Bench) -> None:
    """Only what is asked for is returned, nothing for nothing; an unknown name is refused."""
    queue = bench.queue("q")
    assert bench.broker.get_attributes(queue, ["VisibilityTimeout"]) == {"VisibilityTimeout": "30"}
    assert bench.broker.get_attributes(queue, ["Policy"]) == {}
    assert bench.broker.get_attributes(queue, []) == {}
    with pytest.raises(BrokerError) as caught:
        bench.broker.get_attributes(queue, ["Colour"])
    assert caught.value.kind == "InvalidAttributeName"


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("VisibilityTimeout", 0, 43_200),
        ("MaximumMessageSize", 1_024, 1_048_576),
        ("MessageRetentionPeriod", 60, 1_209_600),
        ("DelaySeconds", 0, 900),
        ("ReceiveMessageWaitTimeSeconds", 0, 20),
        ("KmsDataKeyReusePeriodSeconds", 60, 86_400),
    ],
)
def test_ranges(bench: Bench, name: str, low: int, high: int) -> None:
    """Numbers are accepted up to their limits and refused past them."""
    queue = bench.queue("q", KmsMasterKeyId="alias/key")
    for value in (low, high):
        bench.broker.set_attributes(queue, {name: str(value)})
        assert bench.broker.get_attributes(queue, [name]) == {name: str(value)}
    for wrong in (str(low - 1), str(high + 1), "x", "", "1.5"):
        with pytest.raises(BrokerError) as caught:
            bench.broker.set_attributes(queue, {name: wrong})
        assert caught.value.kind == "InvalidAttributeValue"


def test_all_or_nothing(bench: Bench) -> None:
    """One wrong attribute, and none of the call is set."""
    queue = bench.queue("q")
    with pytest.raises(BrokerError):
        bench.broker.set_attributes(queue, {"VisibilityTimeout": "5", "DelaySeconds": "901"})
    assert queue.settings.visibility == 30


def test_removed_by_an_empty_text(bench: Bench) -> None:
    """Policies are removed by an empty text, and the time of the change is told."""
    source, _ = bench.pair()
    bench.wait(90)
    bench.broker.set_attributes(source, {"RedrivePolicy": ""})
    attributes = bench.broker.get_attributes(source, ["All"])
    assert "RedrivePolicy" not in attributes
    assert attributes["LastModifiedTimestamp"] == str(int(START) + 90)
    assert source.settings.redrive is None


@pytest.mark.parametrize(
    "attributes",
    [
        {"FifoThroughputLimit": "perMessageGroupId"},
        {"DeduplicationScope": "group"},
        {"ContentBasedDeduplication": "yes"},
        {"Policy": "not json"},
        {"Policy": '{"x": "' + "x" * 8_192 + '"}'},
        {"Policy": '{"Statement": "everything"}'},
        {"Policy": '{"Statement": [{"Sid": "1"}, "everything"]}'},
        {"Policy": '{"Statement": null}'},
        {"RedriveAllowPolicy": '{"redrivePermission": "sometimes"}'},
        {"RedriveAllowPolicy": '{"redrivePermission": "byQueue"}'},
        {"RedriveAllowPolicy": '{"redrivePermission": "byQueue", "sourceQueueArns": [1]}'},
        {"RedriveAllowPolicy": '{"redrivePermission": "allowAll", "sourceQueueArns": ["a"]}'},
    ],
)
def test_wrong_values(bench: Bench, attributes: dict[str, str]) -> None:
    """Values outside of their vocabulary, and values that contradict each other, are refused."""
    with pytest.raises(BrokerError) as caught:
        bench.queue("q.fifo", **attributes)
    assert caught.value.kind == "InvalidAttributeValue"


def test_high_throughput(bench: Bench) -> None:
    """High throughput needs both attributes, together or one after the other."""
    queue = bench.queue("q.fifo")
    bench.broker.set_attributes(queue, {"DeduplicationScope": "messageGroup"})
    bench.broker.set_attributes(queue, {"FifoThroughputLimit": "perMessageGroupId"})
    assert queue.settings.deduplicates_by_group


def test_a_key_takes_the_place_of_the_default(bench: Bench) -> None:
    """A KMS key switches SQS's own encryption off."""
    queue = bench.queue("q", KmsMasterKeyId="alias/aws/sqs")
    assert bench.broker.get_attributes(queue, ["SqsManagedSseEnabled"]) == {"SqsManagedSseEnabled": "false"}


def test_deleted_recently(bench: Bench) -> None:
    """The name of a deleted queue can be used again after 60 seconds; its messages are gone."""
    queue = bench.queue("q")
    bench.send(queue, "x")
    bench.broker.delete_queue(queue)
    with pytest.raises(BrokerError) as caught:
        bench.broker.queue("q")
    assert caught.value.kind == "QueueDoesNotExist"
    bench.wait(59.9)
    with pytest.raises(BrokerError) as caught:
        bench.queue("q")
    assert caught.value.kind == "QueueDeletedRecently"
    bench.wait(0.1)
    assert bench.bodies(bench.queue("q")) == []


def test_names_of_deleted_queues_are_forgotten(bench: Bench) -> None:
    """Names of queues that were deleted long ago do not pile up."""
    for number in range(3_000):
        bench.broker.delete_queue(bench.queue(f"q{number}"))
        bench.wait(1)
    assert len(bench.broker.registry.deleted_at) <= 1_100


def test_recreated_at_once_on_request() -> None:
    """The pause after a delete can be switched off."""
    bench = Bench(recreate_after=0)
    bench.broker.delete_queue(bench.queue("q"))
    bench.queue("q")


def test_list(bench: Bench) -> None:
    """Queues are listed by name and prefix, in pages if asked for."""
    for name in ("b", "a2", "a1", "c"):
        bench.queue(name)
    assert [queue.name for queue in bench.broker.list_queues("a")[0]] == ["a1", "a2"]
    seen: list[str] = []
    token = None
    while True:
        queues, token = bench.broker.list_queues(max_results=3, token=token)
        seen += [queue.name for queue in queues]
        if token is None:
            break
    assert seen == ["a1", "a2", "b", "c"]


@pytest.mark.parametrize("options", [{"max_results": 0}, {"max_results": 1001}, {"token": "%%%"}])
def test_wrong_pages(bench: Bench, options: dict[str, object]) -> None:
    """A page has 1 to 1,000 queues, and a token is one that was returned."""
    with pytest.raises(BrokerError) as caught:
        bench.broker.list_queues(**options)  # type: ignore[arg-type]
    assert caught.value.code == "InvalidParameterValue"


def test_accounts_and_regions_are_apart(bench: Bench) -> None:
    """Queues of one name in two regions, or in two accounts, have nothing in common."""
    here = bench.queue("q")
    there = bench.broker.create_queue("q", scope=Scope(region="eu-west-1"))
    theirs = bench.broker.create_queue("q", scope=Scope(account="111122223333"))
    bench.send(here, "x")
    assert (bench.bodies(there), bench.bodies(theirs), bench.bodies(here)) == ([], [], ["x"])
    assert there.arn == "arn:aws:sqs:eu-west-1:000000000000:q"
    assert bench.broker.queue_named("q", owner="111122223333") is theirs
    assert len(bench.broker.list_queues()[0]) == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:4566/000000000000/q", ("q", Scope())),
        ("http://localhost:4566/111122223333/q.fifo", ("q.fifo", Scope("111122223333"))),
        ("https://sqs.eu-west-1.amazonaws.com/111122223333/q", ("q", Scope("111122223333", "eu-west-1"))),
        ("https://eu-west-1.queue.amazonaws.com/111122223333/q", ("q", Scope("111122223333", "eu-west-1"))),
        ("https://queue.amazonaws.com/111122223333/q", ("q", Scope("111122223333"))),
        ("http://localhost:4566/queue/ap-south-1/000000000000/q", ("q", Scope(region="ap-south-1"))),
        ("arn:aws:sqs:eu-west-1:111122223333:q", ("q", Scope("111122223333", "eu-west-1"))),
        ("q", ("q", Scope())),
    ],
)
def test_urls(url: str, expected: tuple[str, Scope]) -> None:
    """All styles of queue URLs are understood, ARNs and names as well."""
    assert locate(url, Scope()) == expected


@pytest.mark.parametrize("url", ["http://x/1/q", "http://x/000000000000", "http://x/a/b/c/d/e"])
def test_no_address(url: str) -> None:
    """A URL that cannot be a queue's is an invalid address."""
    with pytest.raises(BrokerError) as caught:
        locate(url, Scope())
    assert caught.value.kind == "InvalidAddress"


@pytest.mark.parametrize("url", ["http://x", "http://x/", "https://sqs.us-east-1.amazonaws.com", "none"])
def test_no_queue(url: str) -> None:
    """A URL that names an endpoint alone, as a name of no queue, is a queue that does not exist."""
    with pytest.raises(BrokerError) as caught:
        Bench().broker.queue(url)
    assert caught.value.kind == "QueueDoesNotExist"


@pytest.mark.parametrize("name", ["FifoQueue", "ContentBasedDeduplication", "SqsManagedSseEnabled"])
@pytest.mark.parametrize("value", ["True", "False", "TRUE", "true"])
def test_booleans_as_python_writes_them(bench: Bench, name: str, value: str) -> None:
    """A boolean attribute is taken in any case, and shown in lower case."""
    if (name, value) == ("FifoQueue", "False"):
        with pytest.raises(BrokerError, match="Unknown Attribute FifoQueue"):
            bench.broker.create_queue("q", {name: value})
        return
    queue = bench.queue("q.fifo", **{name: value})
    assert bench.broker.get_attributes(queue, [name]) == {name: value.lower()}
    assert bench.queue("q.fifo", **{name: value.lower()}) is queue


def test_one_kind_of_encryption(bench: Bench) -> None:
    """A key and SQS's own keys at once are refused; a key alone takes their place; reset, neither is listed."""
    names = ["KmsMasterKeyId", "KmsDataKeyReusePeriodSeconds", "SqsManagedSseEnabled"]
    for present in ({}, {"SqsManagedSseEnabled": "true"}):
        queue = bench.queue(f"q{len(present)}", **present)
        with pytest.raises(BrokerError, match="one type of server-side encryption") as caught:
            bench.broker.set_attributes(queue, {"KmsMasterKeyId": "k", "SqsManagedSseEnabled": "true"})
        assert caught.value.code == "InvalidAttributeName"
        bench.broker.set_attributes(queue, {"KmsMasterKeyId": "k", "KmsDataKeyReusePeriodSeconds": "600"})
        found = bench.broker.get_attributes(queue, names)
        assert found == dict(zip(names, ("k", "600", "false"), strict=True))
        with pytest.raises(BrokerError, match="one type of server-side encryption"):
            bench.broker.set_attributes(queue, {"SqsManagedSseEnabled": "True"})
        bench.broker.set_attributes(queue, {"KmsMasterKeyId": "", "KmsDataKeyReusePeriodSeconds": "300"})
        assert bench.broker.get_attributes(queue, names) == {"SqsManagedSseEnabled": "false"}


@pytest.mark.parametrize("name", ["DeduplicationScope", "FifoThroughputLimit"])
def test_attributes_of_fifo_queues_alone(bench: Bench, name: str) -> None:
    """A standard queue refuses them by name and says why, whatever the value."""
    for value in ("queue", "perQueue", "nonsense", ""):
        with pytest.raises(BrokerError, match=f"You can specify the {name} only when") as caught:
            bench.queue("q", **{name: value})
        assert caught.value.code == "InvalidAttributeName"


def test_defaults_of_new_queues() -> None:
    """Defaults that the broker is given hold for new queues that do not say otherwise, and are theirs from then on."""
    bench = Bench(queue_defaults={"MaximumMessageSize": "2048", "DelaySeconds": "3"})
    queue = bench.queue("q", DelaySeconds="0")
    names = ["MaximumMessageSize", "DelaySeconds", "VisibilityTimeout"]
    expected = {"MaximumMessageSize": "2048", "DelaySeconds": "0", "VisibilityTimeout": "30"}
    assert bench.broker.get_attributes(queue, names) == expected
    assert bench.queue("q") is queue


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"queue_defaults": {"MaximumMessageSize": "1"}}, "MaximumMessageSize"),
        ({"queue_defaults": {"FifoQueue": "true"}}, "FifoQueue is none of"),
        ({"time_scale": 0}, "time_scale"),
        ({"time_scale": float("nan")}, "time_scale"),
        ({"recreate_after": -1}, "recreate_after"),
    ],
)
def test_options_that_cannot_work(changes: Any, text: str) -> None:
    """An option out of range is refused when it is given, by its name."""
    with pytest.raises(ConfigurationError, match=text):
        LocalBroker(**changes)


def test_an_option_that_does_not_exist() -> None:
    """A misspelt option is refused as a wrong keyword is, and the options are named."""
    wrong: Any = {"sede": 1}
    with pytest.raises(TypeError, match="no option 'sede'"):
        LocalBroker(**wrong)


def test_options_by_keyword_are_all_options() -> None:
    """Every option can be given by keyword."""
    assert set(Changes.__annotations__) == {field.name for field in dataclasses.fields(BrokerOptions)}


def test_a_cached_url_does_not_outlive_its_queue(bench: Bench) -> None:
    """A queue that was deleted and made again is another one under the same URL."""
    bench.queue("q")
    first = bench.broker.queue("http://x/000000000000/q")
    bench.broker.delete_queue(first)
    bench.wait(60)
    bench.queue("q")
    assert bench.broker.queue("http://x/000000000000/q") is not first


def test_tags(bench: Bench) -> None:
    """Tags are added, replaced and removed; a queue that exists keeps its own when it is created again."""
    queue = bench.broker.create_queue("q", None, {"a": "1"})
    bench.broker.create_queue("q", None, {"b": "2"})
    bench.broker.tag_queue(queue, {"a": "3", "c": ""})
    bench.broker.untag_queue(queue, ["c", "none"])
    assert queue.tags == {"a": "3"}


@pytest.mark.parametrize(
    "tags",
    [
        {"": "x"},
        {"k" * 129: "x"},
        {"k": "v" * 257},
        {"aws:x": "y"},
        {str(n): "x" for n in range(51)},
        {},
        {"k": "<"},
        {"k": "\ud800"},
    ],
)
def test_wrong_tags(bench: Bench, tags: dict[str, str]) -> None:
    """Tags have their limits: 50 of them, 128 and 256 characters, no reserved prefix."""
    with pytest.raises(BrokerError):
        bench.broker.tag_queue(bench.queue("q"), tags)


def permission(**changes: object) -> AddPermission:
    """Make a request to add a permission."""
    fields = {"label": "send", "account_ids": ["111122223333"], "actions": ["SendMessage"], **changes}
    return AddPermission(**fields)  # type: ignore[arg-type]


def test_permissions(bench: Bench) -> None:
    """Permissions become statements of the policy, and are removed by their label."""
    queue = bench.queue("q")
    bench.broker.add_permission(queue, permission())
    bench.broker.add_permission(queue, permission(label="all", actions=["*"], account_ids=["111122223333"] * 2))
    policy = msgspec.json.decode(queue.attributes["Policy"])
    assert [statement["Sid"] for statement in policy["Statement"]] == ["send", "all"]
    assert policy["Statement"][0] == {
        "Sid": "send",
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111122223333:root"},
        "Action": "SQS:SendMessage",
        "Resource": queue.arn,
    }
    bench.broker.remove_permission(queue, "send")
    bench.broker.remove_permission(queue, "all")
    assert "Policy" not in queue.attributes


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"label": "a b"}, "InvalidParameterValue"),
        ({"label": None}, "MissingParameter"),
        ({"account_ids": []}, "MissingParameter"),
        ({"account_ids": ["me"]}, "InvalidParameterValue"),
        ({"actions": []}, "MissingParameter"),
        ({"actions": ["Juggle"]}, "InvalidParameterValue"),
        ({"actions": ["SendMessage"] * 8}, "OverLimit"),
        ({"label": "taken"}, "InvalidParameterValue"),
    ],
)
def test_wrong_permissions(bench: Bench, changes: dict[str, object], code: str) -> None:
    """A permission needs a label of its own, accounts, and up to seven actions that can be shared."""
    queue = bench.queue("q")
    bench.broker.add_permission(queue, permission(label="taken"))
    with pytest.raises(BrokerError) as caught:
        bench.broker.add_permission(queue, permission(**changes))
    assert caught.value.code == code


def test_at_most_twenty_statements(bench: Bench) -> None:
    """A policy has at most 20 statements, and an unknown label cannot be removed."""
    queue = bench.queue("q")
    for number in range(20):
        bench.broker.add_permission(queue, permission(label=str(number)))
    with pytest.raises(BrokerError) as caught:
        bench.broker.add_permission(queue, permission(label="more"))
    assert caught.value.kind == "OverLimit"
    with pytest.raises(BrokerError):
        bench.broker.remove_permission(queue, "more")


@pytest.mark.parametrize("missing", ["queue", "url", "attributes", "untag"])
def test_missing_parameters(bench: Bench, missing: str) -> None:
    """What an action needs must be there."""
    queue = bench.queue("q")
    calls = {
        "queue": lambda: bench.broker.create_queue(None),
        "url": lambda: bench.broker.queue(None),
        "attributes": lambda: bench.broker.set_attributes(queue, {}),
        "untag": lambda: bench.broker.untag_queue(queue, []),
    }
    with pytest.raises(BrokerError) as caught:
        calls[missing]()  # type: ignore[no-untyped-call]
    assert caught.value.code == "MissingParameter"


def test_seeded_ids_repeat() -> None:
    """Two brokers with one seed make the same ids."""
    first, second = Bench(), Bench()
    for bench in (first, second):
        assert isinstance(bench.broker, Broker)
        bench.send(bench.queue("q"), "x")
    assert [m.id for m in first.broker.queue("q").messages.values()] == [
        m.id for m in second.broker.queue("q").messages.values()
    ]

"""Whether what came is an answer of SQS at all.

botocore makes an empty answer of an empty body, and of one that is no JSON: a page of a proxy would read as a queue
without messages.
"""

import json
from typing import Any, Final

import msgspec

from postroom.errors import ServiceUnavailable
from postroom.transports.aws.errors import NOT_SQS, Subject
from postroom.transports.aws.wire import Parameters

_MARK: Final = "postroom.NoAnswer"
_decode: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def watch(events: Any) -> None:
    """Look at every answer of a client before botocore parses it, by its public event ``before-parse``."""
    events.register("before-parse.sqs", _look)


def check(answer: Parameters, *, operation: str, subject: Subject) -> None:
    """Raise ``ServiceUnavailable`` if the body that came with a success is no JSON object."""
    if (reason := answer.get(_MARK)) is not None:
        raise ServiceUnavailable(f"{operation} on {subject.text}: {reason}; {NOT_SQS}", operation=operation, code=_MARK)


def _look(*, response_dict: Any, customized_response_dict: Any, **_: Any) -> None:
    if response_dict["status_code"] >= 300:
        return
    body: bytes = response_dict["body"]
    if not _is_object(body):
        customized_response_dict[_MARK] = "the answer is no JSON object" if body else "the answer is empty"


def _is_object(body: bytes) -> bool:
    try:
        _decode(body)
    except msgspec.DecodeError:
        # Python's parser takes a little more, such as half of a surrogate pair, and so does botocore, which uses it.
        return _is_object_to_botocore(body)
    return True


def _is_object_to_botocore(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body.decode()), dict)
    except (ValueError, RecursionError):
        return False

"""Bodies and what is made of them."""

import traceback
from typing import Any

import pytest

from postroom.errors import PayloadError
from postroom.message import Message
from postroom.payloads import decoder_for

SECRET = "s3cr3t-4711"


def message(body: str) -> Message:
    """Make a message with a body."""
    return Message(id="m-1", body=body)


def decode(payload_type: Any, body: str) -> Any:
    """Decode a body as a payload type."""
    return decoder_for(payload_type)(message(body))


def refuse(payload_type: Any, body: str) -> PayloadError:
    """Return the error that a body gets, after checking that it neither quotes nor carries the input."""
    with pytest.raises(PayloadError) as caught:
        decode(payload_type, body)
    error = caught.value
    assert error.message_id == "m-1"
    assert SECRET not in "".join(traceback.format_exception_only(error))
    assert error.__context__ is None
    return error

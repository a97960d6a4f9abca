"""Cost allocation tags: stored and returned, nothing else.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-queue-tags.html
"""

import re
from collections.abc import Mapping

from postroom.local.errors import invalid_parameter

MAX_TAGS = 50
_MAX_KEY = 128
_MAX_VALUE = 256
_TEXT = re.compile(r"[\w\s.:/=+@-]*")


def with_tags(present: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return the tags with new ones added or replaced. Raises InvalidParameterValue past the limits."""
    for key, value in new.items():
        if not 1 <= len(key) <= _MAX_KEY:
            raise invalid_parameter(f"Tag keys must be between 1 and {_MAX_KEY} characters in length.")
        if len(value) > _MAX_VALUE:
            raise invalid_parameter(f"Tag values must be at most {_MAX_VALUE} characters in length.")
        if not _TEXT.fullmatch(key) or not _TEXT.fullmatch(value):
            raise invalid_parameter("Tags can only include letters, digits, whitespace and _ . : / = + - @")
        if key.lower().startswith("aws:"):
            raise invalid_parameter("Tag keys cannot start with the reserved prefix aws:.")
    merged = {**present, **new}
    if len(merged) > MAX_TAGS:
        raise invalid_parameter(f"Too many tags added: a queue can have {MAX_TAGS}.")
    return merged

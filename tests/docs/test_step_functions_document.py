"""The code in docs/step-functions.md makes a consumer, and its state sends what that reads."""

import json
import re
from pathlib import Path
from typing import Any

from postroom import Consumer, MessageAttribute
from postroom.integrations.step_functions import TaskTokens, token_of
from postroom.message import Message
from postroom.payloads import decoder_for
from postroom.testing import context

TEXT = (Path(__file__).parents[2] / "docs" / "step-functions.md").read_text(encoding="utf-8")


def test_the_state_sends_what_the_consumer_reads() -> None:
    """Token, tenant and payload."""
    [code] = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    [state] = re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "step-functions.md", "exec"), names)  # noqa: S102 - the document's own code is tested
    assert isinstance(names["tokens"], TaskTokens)
    assert isinstance(names["invoices"], Consumer)
    sent = json.loads(state)["Parameters"]
    attributes = {name: MessageAttribute(string_value="x") for name in sent["MessageAttributes"]}
    body = json.dumps({name.removesuffix(".$"): "x" for name in sent["MessageBody"]})
    message = Message(id="1", body=body, message_attributes=attributes)
    assert token_of(None, context(message=message)) == "x"
    resolver = names["invoices"].settings.resolver
    assert resolver is not None
    assert resolver(message) == names["Tenant"]("x")
    assert decoder_for(names["Invoice"])(message) == names["Invoice"]("x")

"""Addresses that are no addresses: found by fuzzing, refused by name instead of failing inside of the broker."""

import pytest

from postroom.local import Scope
from postroom.local.errors import BrokerError
from postroom.local.registry import locate


@pytest.mark.parametrize("url", ["http://l[calhost/000000000000/q", "http://[/000000000000/q", "//[x]y/1/q"])
def test_half_an_ipv6_address_is_no_address(url: str) -> None:
    """The caller is told, with SQS's own code."""
    with pytest.raises(BrokerError, match="not valid for this endpoint") as caught:
        locate(url, Scope())
    assert caught.value.kind == "InvalidAddress"

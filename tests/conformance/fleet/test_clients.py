"""Any library's client will do, as long as it is asyncio."""

import asyncio
import random
import time
import traceback
from typing import Any

import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio

from postroom.errors import ConfigurationError
from postroom.fleet import Ask, Decisions, Fleet, Hint, MemoryState, Request, ValkeyState
from postroom.testing.valkey import ValkeyServer


@pytest.mark.parametrize("library", [redis.asyncio.Redis, valkey.asyncio.Valkey])
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}], ids=["bytes", "text", "resp3"])
async def test_clients_of_both_libraries_say_the_same(
    valkey9: ValkeyServer, library: Any, options: dict[str, Any]
) -> None:
    """Answers are read alike as bytes, as text, and over RESP3; the client stays open, because it is the user's."""
    client = library(port=valkey9.port, password=valkey9.password, **options)
    state, name = ValkeyState(client), f"{library.__name__}-{'-'.join(options)}"
    request = Request("a", 1, "", 15.0, 1.0, (Ask("t:\u00e4 \u2603", 4, 0, 3, 3),))
    assert [grant.slots for grant in (await state.exchange(name, request)).grants] == [3]
    assert await state.usage(name) == {"t:\u00e4 \u2603": (3, 1)}
    now = await state.decide(name, {"state t:acme": '{"value":"paused"}'})
    known = await state.decisions(name)
    fields, stamps = {"state t:acme": '{"value":"paused"}'}, {"state t:acme": now}
    assert known == Decisions(now, fields, stamps, {}, (await state.exchange(name, request)).epoch)
    later = await state.decide(name, {"state t:acme": None})
    assert await state.decisions(name) == Decisions(later, {}, {}, {"state t:acme": later}, known.epoch)
    assert await state.restore(name, known) == later
    await state.report(name, "t:db 1", "refused by ümlaut", 5.0)
    hints = (await state.exchange(name, Request("a", 2, "", 15.0, 1.0, ()))).hints
    assert [(hint.host, hint.cause) for hint in hints] == [("t:db 1", "refused by ümlaut")]
    assert isinstance(hints[0], Hint)
    await state.aclose()
    assert await client.ping()
    await client.aclose()


async def test_the_script_says_what_the_model_says(valkey9: ValkeyServer) -> None:
    """Memory and Valkey grant the same, ask by ask, through a thousand random exchanges of six replicas."""
    rng = random.Random(11)
    model, real = MemoryState(time.time), ValkeyState(valkey9.url)
    have: dict[tuple[str, str], int] = {}
    for step in range(1_000):
        replica = f"r{rng.randrange(6)}"
        asks = tuple(
            Ask(
                f"t:{tenant}",
                cap := rng.choice([1, 3, 7, 12]),
                rng.randint(0, have.get((replica, f"t:{tenant}"), 0) + rng.choice([0, 0, 0, 2])),
                rng.choice([0, 1, 4, cap]),
                rng.choice([0, 8]),
            )
            for tenant in range(rng.randint(1, 4))
        )
        sequence = step + 1 if rng.random() < 0.95 else max(1, step - 20)
        request = Request(replica, sequence, "", 1e6, 1.0, asks)
        said, meant = await real.exchange("model", request), await model.exchange("model", request)
        assert said.grants == meant.grants, f"step {step}: {request}"
        assert said.replicas == meant.replicas
        for ask, grant in zip(asks, said.grants, strict=True):
            have[replica, ask.tenant] = grant.slots
    assert await real.usage("model") == await model.usage("model")
    await real.aclose()


async def test_every_key_but_decisions_has_an_end_and_one_hash_tag(valkey9: ValkeyServer) -> None:
    """F10: what is lost is worth nothing; and a cluster keeps everything of a fleet in one slot."""
    client = valkey.asyncio.Valkey(port=valkey9.port, password=valkey9.password, decode_responses=True)
    state = ValkeyState(client)
    asks = (Ask("t:acme", 4, 0, 3, 3, 2.0, 3), Ask("t:other", 4, 0, 1, 4))
    await state.exchange("ends", Request("a", 1, "", 15.0, 1.0, asks))
    await state.decide("ends", {"state t:acme": "x"})
    await state.report("ends", "t:db", "refused", 5.0)
    await state.claim_probe("ends", "t:db2", "a", 5.0)
    keys = [key async for key in client.scan_iter(match="postroom:{ends}:*")]
    endless = [key for key in keys if await client.pttl(key) < 0]
    assert endless == ["postroom:{ends}:decisions"]
    assert {key.split(":")[2] for key in keys} == {
        "epoch", "members", "slots", "rate", "decisions", "hints", "probe",
    }  # fmt: skip
    await client.aclose()


async def test_a_server_without_info_is_good_enough(valkey9: ValkeyServer) -> None:
    """An account that may not run INFO, as ACLs often say, still exchanges."""
    admin: Any = valkey.asyncio.Valkey(port=valkey9.port, password=valkey9.password)
    await admin.execute_command("ACL", "SETUSER", "small", "on", ">pw", "~postroom:*", "+@all", "-info")
    state = ValkeyState(f"valkey://small:pw@127.0.0.1:{valkey9.port}/0")
    answer = await state.exchange("small", Request("a", 1, "", 15.0, 1.0, (Ask("t:acme", 4, 0, 3, 3),)))
    assert answer.grants[0].slots == 3
    await state.aclose()
    await admin.aclose()


@pytest.mark.parametrize(
    ("store", "remedy"),
    [
        ("localhost:6379", "begins with"),
        ("http://localhost", "begins with"),
        (valkey.Valkey(), "asyncio"),
        (redis.Redis(), "asyncio"),
        (7, "SharedState"),
        (None, "SharedState"),
    ],
)
def test_a_store_that_cannot_work_is_refused_with_the_remedy(store: Any, remedy: str) -> None:
    """A blocking client, a URL of something else: said when the Fleet is made, without the URL's password."""
    with pytest.raises(ConfigurationError, match=remedy):
        Fleet(store, per_tenant=4)


def test_a_password_is_not_shown() -> None:
    """The URL's password appears in no repr."""
    fleet = Fleet("valkey://user:s3cret@cache:6379", per_tenant=4)
    assert "s3cret" not in f"{fleet!r} {fleet} {fleet.state!r}"


@pytest.mark.parametrize(
    "url",
    [
        "valkey://:hunter2/x@127.0.0.1:6379/0",
        "valkey://app:hunter2#x@127.0.0.1:6379/0",
        "valkey://app:hunter2?x@127.0.0.1:6379/0",
        "valkey://app:[hunter2@127.0.0.1:6379/0",
        "redis://app:22/hunter2@127.0.0.1:6379/0",
        "rediss://app:22?hunter2@127.0.0.1:6379/0",
        "unix://app:22#hunter2@/run/valkey.sock",
    ],
)
def test_a_password_that_is_not_encoded_is_refused_and_not_shown(url: str) -> None:
    """The library would take a part of it for the port, or connect to another host, again and again."""
    with pytest.raises(ConfigurationError, match="percent-encode") as refused:
        Fleet(url, per_tenant=4)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value)).replace(url, "")
    assert refused.value.__context__ is None


@pytest.mark.parametrize(
    "url",
    [
        "valkey://app:h%2Fu%23n@[::1]:6379/0",
        "valkey://app:h@n@cache:6379/0?password=a@b",
        "valkey://cache?password=a@b&db=2",
        "unix:///run/valkey@6379/socket?db=1",
        "redis://cache",
    ],
)
def test_a_url_that_can_be_read_is_taken(url: str) -> None:
    """Also with signs that mean something elsewhere in a URL."""
    assert isinstance(Fleet(url, per_tenant=4).state, ValkeyState)


@pytest.mark.parametrize("kind", ["url", "valkey", "redis", "single"])
async def test_after_a_fail_over_the_name_is_looked_up_again(kind: str) -> None:
    """The old primary lives on as a replica, and connections to it stay open: they are not used again."""
    request = Request("a", 1, "", 15.0, 1.0, (Ask("t:acme", 4, 0, 3, 3),))
    with ValkeyServer() as old, ValkeyServer() as new:
        new.command("CONFIG", "SET", "requirepass", old.password)
        leads_to = [old.port]

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65_536):
                writer.write(data)
            writer.close()

        async def front(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", leads_to[0])
            await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

        name = await asyncio.start_server(front, "127.0.0.1", 0)
        url = f"redis://:{old.password}@127.0.0.1:{name.sockets[0].getsockname()[1]}/0"
        clients: dict[str, Any] = {
            "valkey": valkey.asyncio.Valkey.from_url(url),
            "redis": redis.asyncio.Redis.from_url(url),
            "single": redis.asyncio.Redis.from_url(url, single_connection_client=True),
        }
        state = ValkeyState(clients.get(kind, url))
        await state.exchange("over", request)
        old.command("REPLICAOF", "127.0.0.1", str(new.port))
        leads_to[0] = new.port
        with pytest.raises((valkey.ReadOnlyError, redis.ReadOnlyError)):
            await state.exchange("over", request)
        assert (await state.exchange("over", request)).grants[0].slots == 3
        await state.aclose()
        for client in clients.values():
            await client.aclose()
        name.close()

"""The console without a browser: what it shows, who may act, and that it costs nothing while no one looks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import httpx
import msgspec
import pytest

from postroom import Concurrency, Consumer, Faults, MessageContext, ResourcePool, TenantState
from postroom.cli.status import render
from postroom.console import ConsoleRequest, ConsoleServer, allow_token, console
from postroom.console.app import _Console
from postroom.console.desk import Desk
from postroom.errors import ConfigurationError
from postroom.events import Event, OperatorAction
from support.shop import tenant_of
from support.world import Order, World, with_world


class Office:
    """A consumer, its console, and a client for that."""

    def __init__(self, world: World, *, allow: Any = None, seconds: float = 1.0) -> None:
        self.world = world
        self.events: list[Event] = []
        self.down: set[str] = set()
        self.consumer: Consumer[str, str] = Consumer(
            "orders",
            context=tenant_of,
            resources=self.database,
            client=world.client,
            concurrency=Concurrency(total=4, per_tenant=2),
            faults=Faults(breaker_after=3, messages=3),
            observers=[self.events.append],
        )
        self.seconds = seconds

        @self.consumer.handler
        async def handle(order: Order, ctx: MessageContext[str, str]) -> None:
            await asyncio.sleep(order.seconds)
            if order.order_id.startswith("bad"):
                raise ValueError(order.order_id)

        self.app = console(self.consumer, allow=allow)
        assert isinstance(self.app, _Console)
        self.desk: Desk = self.app.desk
        began = 1_800_000_000 - asyncio.get_running_loop().time()
        self.desk.wall = lambda: began + asyncio.get_running_loop().time()
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://desk.test/")

    @asynccontextmanager
    async def database(self, tenant: str) -> AsyncIterator[str]:
        """Open a tenant's database, unless it is down."""
        if tenant in self.down:
            raise ConnectionRefusedError("connection refused")
        yield tenant

    async def act(self, action: str, tenant: str = "acme", *, reason: str = "load", **more: Any) -> httpx.Response:
        """Send an action as the page does."""
        headers = {"X-Postroom-Token": self.desk.token, **more.pop("headers", {})}
        order = {"action": action, "tenant": tenant, "reason": reason, **more}
        return await self.http.post("actions", json=order, headers=headers)

    async def look(self, **asked: Any) -> dict[str, Any]:
        """Return the rows by name, of one look."""
        said = (await self.http.get("state", params=asked)).json()
        return {row["n"]: row for row in said["rows"]}


def ann(_: ConsoleRequest) -> str:
    """Let everyone act, as Ann."""
    return "ann"


@asynccontextmanager
async def office(world: World, **options: Any) -> AsyncIterator[Office]:
    """Run a consumer with a console."""
    async with AsyncExitStack() as stack:
        world.create(dead_letters="dead", receives=20)
        made = Office(world, **options)
        await stack.enter_async_context(made.consumer)
        await stack.enter_async_context(made.http)
        yield made


@contextmanager
def watching(desk: Desk) -> Any:
    """Look at the page for the time of the block."""
    with desk.looking():
        yield


@with_world
async def test_the_tenant_that_waits_longest_comes_first(world: World) -> None:
    """With what runs, what waits, and how long its handlers take."""
    async with office(world) as made:
        with watching(made.desk):
            world.send_orders(*map(str, range(8)), tenant="acme", seconds=2)
            await asyncio.sleep(1)
            world.send_orders(*map(str, range(6)), tenant="zeta", seconds=2)
            world.send_orders(*map(str, range(8, 20)), tenant="acme", seconds=2)
            await asyncio.sleep(6)
            rows = await made.look()
        assert list(rows) == ["acme", "zeta"]
        assert rows["acme"]["w"] is not None
        zeta = rows["zeta"]
        assert (zeta["run"], zeta["cap"]) == (2, 2)
        assert zeta["p50"] == pytest.approx(2.0, abs=0.1)
        assert 0 < zeta["share"] < 1


@with_world
async def test_an_outage_is_shown_with_its_cause_and_its_next_try(world: World) -> None:
    """And nothing of a password, as nowhere."""
    async with office(world) as made:
        made.down.add("acme")
        with watching(made.desk):
            world.send_orders("1", "2", tenant="acme")
            await asyncio.sleep(5)
            row = (await made.look())["acme"]
        assert row["s"] == "unavailable"
        assert "connection refused" in row["why"]
        assert "next try" not in row["why"]
        assert row["held"] == 2
        assert row["next"] > row["since"]


@with_world
async def test_failures_and_dead_letters_are_counted_by_tenant(world: World) -> None:
    """With the type of the last error, and no text of it."""
    async with office(world) as made:
        with watching(made.desk):
            world.send_orders("bad-1", tenant="acme")
            made.consumer.tenants.quarantine("other")
            world.send_orders("1", tenant="other")
            await asyncio.sleep(2)
            rows = await made.look()
        assert rows["acme"]["err"] == "ValueError"
        assert rows["acme"]["fail"] >= 1
        assert rows["other"]["dead"] == 1
        assert "bad-1" not in str(rows)


@with_world
async def test_figures_are_gathered_only_while_someone_looks(world: World) -> None:
    """Without a viewer no event is made, no task runs, and nothing is remembered."""
    async with office(world) as made:
        observers = made.consumer._settings.observers
        plain = len(list(observers))
        looks = made.desk.watch(top=10)
        first = msgspec.json.decode(await anext(looks))
        assert first["order"] == []
        assert len(list(observers)) == plain + 1
        world.send_orders("1", tenant="acme")
        second = msgspec.json.decode(await anext(looks))
        assert [row["n"] for row in second["rows"]] == ["acme"]
        await looks.aclose()
        assert made.desk.viewers == 0
        assert len(list(observers)) == plain
        assert not made.desk._collectors[0].tallies
        await asyncio.sleep(1)
        assert not [task for task in asyncio.all_tasks() if "console" in task.get_name()]


@with_world
async def test_only_what_has_changed_is_sent(world: World) -> None:
    """A second look at tenants that do nothing has no rows."""
    async with office(world) as made:
        for tenant in ("a", "b"):
            made.consumer.tenants.pause(tenant, reason="x")
        looks = made.desk.watch(top=10)
        assert len(msgspec.json.decode(await anext(looks))["rows"]) == 2
        again = msgspec.json.decode(await anext(looks))
        assert again["rows"] == []
        assert "order" not in again
        made.consumer.tenants.resume("b")
        assert msgspec.json.decode(await anext(looks))["order"] == ["0:a"]
        await looks.aclose()


@with_world
async def test_a_viewer_that_goes_ends_its_stream(world: World) -> None:
    """The figures are forgotten with the last one."""
    async with office(world) as made:
        gone = asyncio.Event()
        parts: list[bytes] = []

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            parts.append(event.get("body", b""))

        scope = {"type": "http", "method": "GET", "path": "/desk/events", "headers": [], "query_string": b"top=5"}
        stream = asyncio.ensure_future(made.app(scope, receive, send))
        await asyncio.sleep(2.5)
        assert made.desk.viewers == 1
        gone.set()
        await asyncio.sleep(1.5)
        assert stream.done()
        assert made.desk.viewers == 0
        assert parts[1].startswith(b'data: {"t":')


@with_world
async def test_tenants_are_found_by_a_part_of_their_name(world: World) -> None:
    """Only so many are shown; the rest is counted."""
    async with office(world) as made:
        for number in range(30):
            made.consumer.tenants.pause(f"tenant-{number}", reason="x")
        assert len(await made.look(top=7)) == 7
        assert set(await made.look(search="T-2")) == {f"tenant-{n}" for n in (2, *range(20, 30))}
        assert (await made.http.get("state", params={"top": "x"})).status_code == 400


@pytest.mark.parametrize(
    ("action", "more", "state"),
    [
        ("pause", {}, TenantState.PAUSED),
        ("quarantine", {}, TenantState.QUARANTINED),
        ("divert", {"to": "other"}, TenantState.DIVERTED),
        ("limit", {"concurrency": 1, "rate": 2.5}, TenantState.ACTIVE),
        ("drain", {"timeout": 5}, TenantState.PAUSED),
        ("invalidate", {}, TenantState.ACTIVE),
        ("retry", {}, TenantState.ACTIVE),
    ],
)
@with_world
async def test_an_action_takes_effect_is_an_event_and_a_log_line(
    world: World, action: str, more: dict[str, Any], state: TenantState, caplog: pytest.LogCaptureFixture
) -> None:
    """Each with the operator's name and the reason."""
    async with office(world, allow=ann) as made:
        world.create("other")
        world.send_orders("1", tenant="acme")
        await asyncio.sleep(1)
        made.consumer.tenants.pause("acme")
        made.consumer.tenants.resume("acme")
        with watching(made.desk):
            made.desk._collectors[0]._tally("acme", 0.0)
            answer = await made.act(action, **more)
        assert answer.status_code == 200, answer.text
        assert made.consumer.tenants["acme"].state is state
        [event] = [event for event in made.events if isinstance(event, OperatorAction)]
        assert (event.tenant, event.action, event.operator, event.reason) == ("acme", action, "ann", "load")
        assert "load (ann)" in caplog.text
        assert (await made.act("resume")).status_code == 200
        assert made.consumer.tenants["acme"].state is TenantState.ACTIVE


@with_world
async def test_a_limit_is_shown_with_its_reason_and_ended_by_zero(world: World) -> None:
    """A limit of nothing is none."""
    async with office(world, allow=ann) as made:
        made.consumer.tenants.pause("acme")
        assert (await made.act("limit", concurrency=1, rate=2)).status_code == 200
        made.consumer.tenants.resume("acme")
        assert (await made.act("limit", concurrency=1, rate=2)).status_code == 200
        row = (await made.look())["acme"]
        assert (row["rl"], row["why"]) == (2, "load (ann)")
        assert (await made.act("limit", concurrency=0, rate=0)).status_code == 200
        assert "acme" not in await made.look()


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ({"action": "explode", "tenant": "acme", "reason": "x"}, "there are pause, resume"),
        ({"action": "pause", "tenant": "acme", "reason": "  "}, "needs a reason"),
        ({"action": "pause", "tenant": "nobody", "reason": "x", "queue": "other"}, "no consumer of queue 'other'"),
        ({"action": "limit", "tenant": "acme", "reason": "x"}, "limit needs concurrency or rate"),
        ({"action": "limit", "tenant": "acme", "reason": "x", "rate": -1}, "from 0 on"),
        ({"action": "limit", "tenant": "acme", "reason": "x", "rate": 1e-16}, "from 1e-06 to 1e+09"),
        ({"action": "limit", "tenant": "acme", "reason": "x", "concurrency": 10**400}, "from 1 to 1e+06"),
        ({"action": "divert", "tenant": "acme", "reason": "x"}, "divert needs the queue"),
        ({"action": "drain", "tenant": "acme", "reason": "x", "timeout": 0}, "timeout above 0"),
        ({"action": "pause", "tenant": "acme"}, "missing required field `reason`"),
        ({"action": "pause", "tenant": "acme", "reason": "x", "who": "me"}, "unknown field"),
        ([], "not an action"),
    ],
)
@with_world
async def test_a_wrong_action_is_refused_with_what_to_write(world: World, order: Any, text: str) -> None:
    """And nothing is done."""
    async with office(world, allow=ann) as made:
        made.consumer.tenants.limit("acme", rate=1)
        answer = await made.http.post("actions", json=order, headers={"X-Postroom-Token": made.desk.token})
        assert answer.status_code == 400
        assert text in answer.json()["error"]
        assert not [event for event in made.events if isinstance(event, OperatorAction)]


@with_world
async def test_an_action_that_is_too_long_or_ends_too_soon_is_refused(world: World) -> None:
    """With the console's own status and words, and nothing is done."""
    async with office(world, allow=ann) as made:
        answer = await made.act("pause", reason="x" * 20_000)
        assert (answer.status_code, answer.json()["error"]) == (413, "an action is shorter than that")

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        sent: list[Any] = []

        async def send(event: Any) -> None:
            sent.append(event)

        headers = [(b"content-type", b"application/json"), (b"x-postroom-token", made.desk.token.encode())]
        await made.app({"type": "http", "method": "POST", "path": "/actions", "headers": headers}, receive, send)
        assert sent[0]["status"] == 400
        assert msgspec.json.decode(sent[1]["body"]) == {"error": "the request ended too soon"}
        assert not [event for event in made.events if isinstance(event, OperatorAction)]


@with_world
async def test_a_drain_that_takes_too_long_leaves_the_tenant_paused(world: World) -> None:
    """And says so."""
    async with office(world, allow=ann) as made:
        world.send_orders("1", tenant="acme", seconds=60)
        await asyncio.sleep(1)
        answer = await made.act("drain", timeout=2)
        text = "tenant acme has 1 handler running in orders: give it more time, or end what hangs there"
        assert answer.status_code == 504
        assert answer.json()["error"] == f"not done after 2 s: {text}; it stays paused"
        assert made.consumer.tenants["acme"].state is TenantState.PAUSED


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"X-Postroom-Token": "wrong"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Origin": "http://desk.test", "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
@with_world
async def test_a_page_of_another_site_cannot_act(world: World, headers: dict[str, str], status: int) -> None:
    """Origin, what browsers say of the site, the token, and a content type that no form can send."""
    async with office(world, allow=ann) as made:
        made.consumer.tenants.limit("acme", rate=1)
        answer = await made.act("pause", headers=headers)
        assert answer.status_code == status
        paused = made.consumer.tenants["acme"].state is TenantState.PAUSED
        assert paused is (status == 200)


@pytest.mark.parametrize("allow", [None, lambda _: None, lambda _: ""])
@with_world
async def test_without_a_name_for_the_operator_it_is_read_only(world: World, allow: Any) -> None:
    """The page says who it takes the viewer for."""
    async with office(world, allow=allow) as made:
        made.consumer.tenants.limit("acme", rate=1)
        assert (await made.http.get("me")).json()["operator"] is None
        assert (await made.act("pause")).status_code == 403
        assert made.consumer.tenants["acme"].state is TenantState.ACTIVE


@with_world
async def test_allow_may_be_async_and_reads_what_a_middleware_left(world: World) -> None:
    """The scope is the framework's own."""

    async def by_session(request: ConsoleRequest) -> str | None:
        await asyncio.sleep(0)
        return request.headers.get("x-user")

    async with office(world, allow=by_session) as made:
        said = (await made.http.get("me", headers={"X-User": " Bob\n Smith "[:4]})).json()
        assert said["operator"] == "Bob"


def test_a_token_names_the_operator() -> None:
    """Another token does not; a short one is refused."""
    allow = allow_token("correct horse battery")
    good = {"authorization": "Bearer correct horse battery"}
    assert allow(ConsoleRequest(good, None, {})) == "operator"
    assert allow(ConsoleRequest({**good, "x-postroom-operator": "ann"}, None, {})) == "ann"
    assert allow(ConsoleRequest({"authorization": "Bearer x"}, None, {})) is None
    assert allow(ConsoleRequest({}, None, {})) is None
    with pytest.raises(ConfigurationError, match="at least 12 characters"):
        allow_token("short")


@with_world
async def test_the_page_runs_no_script_but_its_own(world: World) -> None:
    """Its policy allows one script and one style by their hashes, and requests to its own server only."""
    async with office(world) as made:
        answer = await made.http.get("")
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == 200
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert "://" not in answer.text.replace("http://www.w3.org", "")
        assert " style=" not in answer.text
        assert " onclick" not in answer.text
        assert (await made.http.get("nothing")).status_code == 404
        assert (await made.http.put("actions")).status_code == 405
        assert (await made.http.head("")).content == b""


@with_world
async def test_a_mount_without_its_last_slash_is_sent_there(world: World) -> None:
    """The paths of the page are relative to it."""
    async with office(world) as made:
        mounted = httpx.ASGITransport(made.app, root_path="/desk")
        async with httpx.AsyncClient(transport=mounted, base_url="http://desk.test") as client:
            answer = await client.get("/desk")
            assert (answer.status_code, answer.headers["location"]) == (307, "desk/")
            assert (await client.get("/desk/")).status_code == 200


@with_world
async def test_it_tells_of_a_consumer_that_does_not_run(world: World) -> None:
    """Before the start, and after the stop."""
    world.create()
    made = Office(world)
    said = (await made.http.get("state")).json()
    assert said["strips"] == [{"queue": "orders", "running": False}]
    await made.http.aclose()


@with_world
async def test_a_diverted_tenants_messages_go_to_the_other_queue(world: World) -> None:
    """As they are, with the reason; the others' are handled."""
    async with office(world) as made:
        world.broker.create_queue("aside")
        made.consumer.tenants.divert("acme", queue="aside", reason="half a million of them")
        world.send_orders("1", "2", "3", tenant="acme")
        world.send_orders("4", tenant="b")
        await asyncio.sleep(3)
        assert world.counts() == (0, 0)
        assert world.counts("aside") == (3, 0)
        opened = await world.client.queue("aside")
        [message, *_] = await opened.receive(limit=1, wait=0, visibility=30)
        assert message.attributes["postroom.reason"] == "diverted to aside: half a million of them"
        assert message.attributes["tenantId"] == "acme"
        assert made.consumer.statistics().succeeded == 1


@with_world
async def test_messages_stay_where_the_other_queue_does_not_exist(world: World) -> None:
    """No attempt is counted, nothing is lost, and the page says why they are here."""
    async with office(world) as made:
        made.consumer.tenants.divert("acme", queue="nowhere")
        world.send_orders("1", tenant="acme")
        await asyncio.sleep(3)
        assert sum(world.counts()) == 1
        row = (await made.look())["acme"]
        assert row["s"] == "diverted"
        assert "to nowhere: " in row["why"]
        assert "queue nowhere takes nothing: " in row["why"]
        made.consumer.tenants.resume("acme")
        await asyncio.sleep(60)
        assert world.counts() == (0, 0)
        assert world.counts("dead") == (0, 0)


@pytest.mark.parametrize(("to", "text"), [("nowhere", "nowhere"), ("orders", "divert needs another queue")])
@with_world
async def test_a_diversion_to_no_queue_or_to_its_own_is_refused(world: World, to: str, text: str) -> None:
    """The operator learns of it at once; the tenant's messages would stay, or go round in a circle."""
    async with office(world, allow=ann) as made:
        made.consumer.tenants.limit("acme", rate=5)
        answer = await made.act("divert", to=to)
        assert (answer.status_code, text in answer.json()["error"]) == (400, True), answer.text
        assert made.consumer.tenants["acme"].state is TenantState.ACTIVE


@with_world
async def test_retry_now_ends_the_wait_after_an_outage(world: World) -> None:
    """The next try would have been up to half a minute away."""
    async with office(world) as made:
        made.down.add("acme")
        world.send_orders("1", tenant="acme")
        await asyncio.sleep(60)
        made.down.clear()
        made.consumer.tenants.retry_now("acme", reason="it is back")
        await asyncio.sleep(0.5)
        assert made.consumer.statistics().succeeded == 1


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (console, "at least one consumer"),
        (lambda: console([]), "takes consumers, one argument each"),  # type: ignore[arg-type]
        (lambda: console(Consumer("q"), allow="ann"), "takes a function of a request"),  # type: ignore[arg-type]
        (lambda: ConsoleServer(Consumer("q"), port=70_000), "from 0 to 65535"),
        (lambda: Consumer("q").tenants.divert("a", queue=""), "name, URL or ARN"),
    ],
)
def test_a_wrong_argument_says_what_to_write(make: Any, text: str) -> None:
    """Before anything listens."""
    with pytest.raises(ConfigurationError, match=text):
        make()


async def test_the_server_serves_the_page_and_a_stream_and_refuses_strange_hosts() -> None:
    """A name that a stranger could point to this machine is none of its own."""
    consumer: Consumer[None, None] = Consumer("orders")
    async with ConsoleServer(consumer, port=0) as server, httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("")).text.startswith("<!doctype html>")
        strange = await client.get("", headers={"Host": "evil.example"})
        assert (strange.status_code, "; --console-host allows it" in strange.text) == (403, True)
        async with client.stream("GET", "events") as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            async for line in stream.aiter_lines():
                assert line.startswith('data: {"t":')
                break
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"nonsense\r\n\r\n")
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await ConsoleServer(consumer, port=server.port).__aenter__()


async def test_a_head_that_is_too_large_is_refused_and_no_error_of_the_console(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Anyone can send one, such as a browser with many cookies."""
    consumer: Consumer[None, None] = Consumer("orders")
    async with ConsoleServer(consumer, port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: " + b"a" * 17_000 + b"\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"431"
        writer.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@with_world
async def test_idle_tenants_far_behind_are_looked_at_every_half_a_minute(world: World) -> None:
    """A viewer of many tenants costs little: what has changed among the first hundred is sent at once."""
    async with office(world) as made:
        for number in range(300):
            made.consumer.tenants.limit(f"t{number:03}", rate=100)
        looks = made.desk.watch(top=1_000)
        said = msgspec.json.decode(await anext(looks))
        assert len(said["rows"]) == len(said["order"]) == 300
        for number in range(300):
            made.consumer.tenants.limit(f"t{number:03}", rate=50)
        seen = [{row["n"] for row in msgspec.json.decode(await anext(looks))["rows"]} for _ in range(30)]
        await looks.aclose()
        assert {f"t{number:03}" for number in range(100)} <= seen[0]
        assert len(seen[0]) == 107
        assert len(set[str]().union(*seen)) == sum(map(len, seen)) == 300


@with_world
async def test_a_tenant_that_waits_comes_to_the_front_and_is_sent_at_once(world: World) -> None:
    """However many others are shown; the order of all of them is not sent again for it."""
    async with office(world) as made:
        for number in range(300):
            made.consumer.tenants.limit(f"t{number:03}", rate=100)
        looks = made.desk.watch(top=1_000)
        await anext(looks)
        world.send_orders(*map(str, range(8)), tenant="t250", seconds=3)
        said: dict[str, Any] = {}
        while "front" not in said:
            said = msgspec.json.decode(await anext(looks))
            assert "order" not in said
        assert said["front"] == ["0:t250"]
        [row] = [row for row in said["rows"] if row["n"] == "t250"]
        assert (row["run"], row["wait"]) == (2, 6)
        for _ in range(14):
            said |= msgspec.json.decode(await anext(looks))
        assert said["front"] == []
        await looks.aclose()


@with_world
async def test_every_tenant_of_a_host_that_is_down_is_unavailable_with_the_cause(world: World) -> None:
    """Also those that have not tried it themselves; and they are active again with it."""
    world.create(dead_letters="dead", receives=20)
    down = True

    @asynccontextmanager
    async def database(tenant: str) -> AsyncIterator[str]:
        if down:
            raise ConnectionRefusedError("connection refused")
        yield tenant

    pool = ResourcePool(database, host=lambda _: "db-1")
    consumer = Consumer("orders", context=tenant_of, resources=pool, client=world.client)

    @consumer.handler
    async def handle(order: Order, ctx: MessageContext[str, str]) -> None: ...

    desk = Desk([consumer])
    tenants = "abcdefghijkl"
    async with pool, consumer:
        for tenant in tenants:
            world.send_orders("1", "2", tenant=tenant)
        await asyncio.sleep(20)
        rows = desk.glance(top=100)["rows"]
        assert [row.n for row in rows if row.s == "unavailable"] == list(tenants)
        assert all("ConnectionRefusedError" in row.why for row in rows)
        assert rows[-1].why == "host db-1 is down: could not be opened (ConnectionRefusedError: connection refused)"
        down = False
        await asyncio.sleep(30)
        assert [row.s for row in desk.glance(top=100)["rows"]] == ["active"] * 12


@with_world
async def test_a_tenant_with_an_outage_is_shown_although_nothing_of_it_is_here(world: World) -> None:
    """Its few receives have sent its message back to the queue for some time."""
    async with office(world) as made:
        made.down.add("acme")
        world.send_orders("1", tenant="acme")
        await asyncio.sleep(2)
        world.broker.purge("orders")
        await asyncio.sleep(600)
        assert made.consumer.statistics().held == 0
        assert (await made.look())["acme"]["s"] == "unavailable"


@with_world
async def test_one_who_looks_again_and_again_finds_rates(world: World) -> None:
    """As ``postroom status`` does; a quarter of a minute after the last look nothing is gathered."""
    async with office(world) as made:
        plain = len(list(made.consumer.settings.observers))
        await made.look()
        for number in range(20):
            world.send_orders(str(number), tenant="acme", seconds=0.1)
            await asyncio.sleep(0.5)
        row = (await made.look())["acme"]
        assert row["rate"] == pytest.approx(2, abs=0.3)  # although it has listened for ten seconds only
        assert row["p50"] == pytest.approx(0.1, abs=0.02)
        assert made.desk.viewers == 0
        await asyncio.sleep(15.1)
        assert len(list(made.consumer.settings.observers)) == plain
        assert "rate" not in (await made.look())["acme"]


@with_world
async def test_a_tenant_with_a_limit_of_running_handlers_is_limited(world: World) -> None:
    """As one with a limit of starts is."""
    async with office(world) as made:
        made.consumer.tenants.limit("acme", concurrency=1)
        assert (await made.look())["acme"]["cl"] == 1


@with_world
async def test_a_new_viewer_of_many_tenants_gets_their_rows_a_thousand_at_a_time(world: World) -> None:
    """All at once would block the event loop of the consumers; the order is there from the beginning."""
    async with office(world) as made:
        for number in range(2_600):
            made.consumer.tenants.limit(f"t{number:04}", rate=100)
        began = asyncio.get_running_loop().time()
        looks = made.desk.watch(top=5_000)
        said = [msgspec.json.decode(await anext(looks)) for _ in range(3)]
        await looks.aclose()
        assert len(said[0]["order"]) == 2_600
        rows = [{row["n"] for row in each["rows"]} for each in said]
        assert len(set[str]().union(*rows)) == 2_600
        assert max(map(len, rows)) <= 1_200
        assert asyncio.get_running_loop().time() - began < 0.5


@with_world
async def test_tenants_that_are_stopped_come_first_and_those_with_traffic_before_idle_ones(world: World) -> None:
    """A thousand tenants with a limit do not hide the one that has messages."""
    async with office(world) as made:
        made.consumer.tenants.limit("a-limited", rate=100)
        made.consumer.tenants.pause("z-paused", reason="x")
        with watching(made.desk):
            world.send_orders("1", tenant="busy")
            await asyncio.sleep(1)
            assert list(await made.look()) == ["z-paused", "busy", "a-limited"]


@with_world
async def test_a_consumer_of_several_queues_is_one_line_with_the_figures_of_all(world: World) -> None:
    """A tenant has one row, whatever queues its messages are in; an action holds in all, by the name of any of them."""
    for name in ("orders", "invoices"):
        world.create(name)
    consumer = Consumer(
        queues=["orders", "invoices"],
        context=tenant_of,
        client=world.client,
        concurrency=Concurrency(total=4, per_tenant=3),
    )

    @consumer.handler
    async def handle(order: Order, ctx: MessageContext[str, None]) -> None:
        await asyncio.sleep(order.seconds)

    desk = Desk([consumer])
    async with consumer:
        for queue in ("orders", "invoices"):
            for number in range(4):
                world.send({"order_id": str(number), "seconds": 30}, tenant="acme", queue=queue)
        await asyncio.sleep(5)
        said = desk.glance(top=10)
        await asyncio.sleep(1)
        said = desk.glance(top=10)
        [row], [strip] = said["rows"], said["strips"]
        assert (row.n, row.run, row.cap, row.wait + row.away) == ("acme", 3, 3, 5)
        assert (strip["queue"], strip["queues"], strip["busy"], strip["slots"]) == ("orders, invoices", 2, 3, 4)
        assert strip["visible"] + strip["in_flight"] == 8
        assert strip["unreachable"] == []
        assert desk.find("acme", "invoices") == desk.find("acme", None) == [(consumer, "acme")]
        with pytest.raises(ConfigurationError, match="no consumer of queue 'nope'"):
            desk.find("acme", "nope")
        consumer.tenants.pause("acme", reason="x")
        await asyncio.sleep(60)
        [row] = desk.glance(top=10)["rows"]
        assert (row.s, row.run) == ("paused", 0)


@with_world
async def test_queues_that_cannot_be_reached_are_named_above_the_rows(world: World) -> None:
    """The others are consumed all the same."""
    world.create("orders")
    consumer = Consumer(queues=lambda: ["orders", "missing"], context=tenant_of, client=world.client)

    @consumer.handler
    async def handle(order: Order, ctx: MessageContext[str, None]) -> None: ...

    desk = Desk([consumer])
    async with consumer:
        await asyncio.sleep(1)
        [strip] = desk.glance(top=10)["strips"]
        assert strip["queues"] == 1
        [why] = strip["unreachable"]
        assert "missing" in why
        text = render({"strips": [strip], "rows": [], "total": 0}, now=0.0)
        assert "not reachable: missing" in text


@with_world
async def test_a_tenant_that_comes_back_into_view_is_sent_again(world: World) -> None:
    """A page forgets what it does not show."""
    async with office(world) as made:
        for name in ("b", "c"):
            made.consumer.tenants.pause(name, reason="x")
        looks = made.desk.watch(top=2)
        await anext(looks)
        made.consumer.tenants.pause("a", reason="x")
        said = msgspec.json.decode(await anext(looks))
        assert (said["order"], [row["n"] for row in said["rows"]]) == (["0:a", "0:b"], ["a"])
        made.consumer.tenants.resume("a")
        said = msgspec.json.decode(await anext(looks))
        assert (said["order"], [row["n"] for row in said["rows"]]) == (["0:b", "0:c"], ["c"])
        await looks.aclose()

"""Passwords that are remembered, refreshed before they end, and fetched once however many ask."""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from postroom.datasources._passwords import connected
from postroom.datasources.credentials import CachedPassword, Freshness
from postroom.datasources.registry import DataSource
from postroom.errors import ConfigurationError
from postroom.redaction import describe
from postroom.testing.loop import run_virtual

DSN = "postgresql://app@db/a"


@dataclass
class Service:
    """Answers with a new password each time, after a while, or fails."""

    seconds: float = 1.0
    asked: int = 0
    failing: bool = False
    contexts: list[str] = field(default_factory=list[str])

    async def fetch(self) -> str:
        """Answer."""
        self.asked += 1
        number = self.asked
        self.contexts.append(_message.get())
        await asyncio.sleep(self.seconds)
        if self.failing:
            raise ConnectionError("secret detail")
        return f"p{number}"


_message = contextvars.ContextVar("message", default="none")


def _remembering(service: Service) -> CachedPassword:
    return CachedPassword(service.fetch, Freshness(refresh=60, expire=100), name="acme")


def test_many_connections_at_once_make_one_request() -> None:
    """The request belongs to none of the messages that caused it."""

    async def main() -> None:
        _message.set("m-1")
        service = Service()
        password = _remembering(service)
        assert await asyncio.gather(*(password() for _ in range(50))) == ["p1"] * 50
        assert await password() == "p1"
        assert (service.asked, service.contexts) == (1, ["none"])

    run_virtual(main())


def test_a_connection_that_is_given_up_leaves_the_answer_to_the_others() -> None:
    """The first of them started the request."""

    async def main() -> None:
        service = Service()
        password = _remembering(service)
        first, second = asyncio.create_task(password()), asyncio.create_task(password())
        await asyncio.sleep(0.5)
        first.cancel()
        assert await second == "p1"
        assert first.cancelled()
        assert service.asked == 1

    run_virtual(main())


def test_a_newer_password_is_fetched_while_the_old_one_is_used() -> None:
    """No connection waits for it."""

    async def main() -> None:
        service = Service()
        password = _remembering(service)
        loop = asyncio.get_running_loop()
        await password()
        await asyncio.sleep(60)
        before = loop.time()
        assert await password() == "p1"
        assert loop.time() == before
        await asyncio.sleep(2)
        assert await password() == "p2"
        assert service.asked == 2

    run_virtual(main())


def test_an_expired_password_is_not_used() -> None:
    """After a night without connections, the first one waits."""

    async def main() -> None:
        password = _remembering(Service())
        await password()
        await asyncio.sleep(100)
        assert await password() == "p2"

    run_virtual(main())


def test_the_old_password_is_used_while_the_service_is_down(caplog: pytest.LogCaptureFixture) -> None:
    """Until it expires; the log says so without the service's own words, and not for each connection."""

    async def main() -> None:
        service = Service()
        password = _remembering(service)
        await password()
        service.failing = True
        await asyncio.sleep(60)
        for _ in range(100):
            assert await password() == "p1"
            await asyncio.sleep(0.1)
        assert service.asked <= 4
        await asyncio.sleep(40)
        with pytest.raises(ConnectionError):
            await password()
        service.failing = False
        assert (await password()).startswith("p")

    with caplog.at_level(logging.WARNING, "postroom.datasources"):
        run_virtual(main())
    told, over = caplog.messages
    assert "The password of acme could not be refreshed (ConnectionError)" in told
    assert over == "The password of acme is refreshed again"
    assert "secret detail" not in caplog.text


def test_a_failure_is_told_to_all_who_wait_and_not_remembered() -> None:
    """The next connection asks again."""

    async def main() -> None:
        service = Service(failing=True)
        password = _remembering(service)
        outcomes = await asyncio.gather(*(password() for _ in range(3)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectionError] * 3
        service.failing = False
        assert await password() == "p2"

    run_virtual(main())


def test_a_fetch_that_is_never_answered_keeps_out_no_later_connection() -> None:
    """It ends after half a minute, with a word why, and the next connection asks again."""

    async def main() -> None:
        service = Service(seconds=1e9)
        password = _remembering(service)
        with pytest.raises(TimeoutError, match="the password of acme was not fetched within 30 s"):
            await password()
        service.seconds = 1.0
        assert await password() == "p2"

    run_virtual(main())


def test_a_refused_password_is_forgotten_once() -> None:
    """Ten connections are refused with the same one: that makes one request, not ten."""

    async def main() -> None:
        service = Service()
        password = _remembering(service)
        await password()
        for _ in range(10):
            password.forget("p1")
            assert await password() == "p2"
        assert service.asked == 2

    run_virtual(main())


def test_it_works_in_one_event_loop_after_another() -> None:
    """As tests use it: a fetch of a loop that ended is not waited for."""
    service = Service()
    password = _remembering(service)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await password()

    asyncio.run(give_up())
    service.seconds = 0
    assert asyncio.run(_ask(password)).startswith("p")


async def _ask(password: Callable[[], Awaitable[str]]) -> str:
    return await password()


def test_it_shows_nothing_and_refuses_what_cannot_work() -> None:
    """A repr ends in logs."""
    password = _remembering(Service(seconds=0))
    asyncio.run(_ask(password))
    assert repr(password) == "CachedPassword('acme')"
    with pytest.raises(ConfigurationError, match="refreshed before it expires"):
        Freshness(refresh=2, expire=1)


class Refused(Exception):
    """As a server does."""

    sqlstate = "28P01"


@dataclass
class Server:
    """Knows its present password."""

    password: str
    tries: list[str] = field(default_factory=list[str])

    async def connect(self, keywords: dict[str, str]) -> str:
        """Connect, or refuse."""
        self.tries.append(keywords["password"])
        if keywords["password"] != self.password:
            raise Refused
        return "connected"


def test_a_password_that_was_just_rotated_fails_no_connection() -> None:
    """The remembered one is refused, the newer one is taken."""

    async def main() -> None:
        server = Server("p2")
        source = DataSource(DSN, password=_remembering(Service()))
        assert await connected(source, server.connect) == "connected"
        assert server.tries == ["p1", "p2"]

    run_virtual(main())


def test_a_plain_function_that_has_a_newer_password_is_asked_again() -> None:
    """A file that a sidecar rewrites, for instance."""

    async def main() -> None:
        answers = iter(["old", "new"])
        server = Server("new")
        assert await connected(DataSource(DSN, password=lambda: next(answers)), server.connect) == "connected"

    run_virtual(main())


def test_a_wrong_password_is_refused_after_one_try() -> None:
    """Trying the same one again could lock the account."""

    async def main() -> None:
        server = Server("right")
        with pytest.raises(Refused):
            await connected(DataSource(DSN, password=lambda: "wrong"), server.connect)
        assert server.tries == ["wrong"]

    run_virtual(main())


@pytest.mark.parametrize("password", ["right\n", "right\r\n", "wrong"])
def test_a_line_break_at_the_end_of_a_refused_password_is_told(password: str) -> None:
    """A file of a secret ends with one, and the log does not show the password."""

    async def main() -> None:
        with pytest.raises(Refused) as refused:
            await connected(DataSource(DSN, password=lambda: password), Server("right").connect)
        assert ("ends with a line break" in describe(refused.value)) == (password != "wrong")

    run_virtual(main())


def test_another_error_is_not_tried_again() -> None:
    """It is the pool that decides about those."""

    async def main() -> None:
        asked: list[str] = []

        async def down(keywords: dict[str, str]) -> None:
            asked.append(keywords["password"])
            raise ConnectionRefusedError

        with pytest.raises(ConnectionRefusedError):
            await connected(DataSource(DSN, password=lambda: "p"), down)
        assert asked == ["p"]

    run_virtual(main())

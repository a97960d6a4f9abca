"""What the log says of outages that come and go: news at once, the others together, and the end once."""

import asyncio
import logging
import re
from collections.abc import Callable
from contextvars import ContextVar
from random import Random

import pytest

from postroom import outages
from postroom.log_fields import Log, Step
from postroom.outages import CALM, FORGOTTEN, MOST, SINGLY, Kind, Outages, Telling, cause_of
from postroom.testing.loop import run_virtual

KIND = Kind("Resources not available", "key", Log("postroom.test", Step.RESOURCES), Step.RESOURCES, "tenant")
HOUR = 3600.0


class Scene:
    """The log of one component, with a clock that is set by hand, and what became of each failure."""

    def __init__(self) -> None:
        self.outages = Outages()
        self.now = 0.0
        self.told: list[tuple[float, object, Telling]] = []
        self.ends: list[tuple[float, object]] = []

    def fail(self, subject: object, cause: str = "OSError") -> Telling:
        """Let something fail."""
        telling = self.outages.failed(KIND, subject, cause, f"{cause}: no", self.now)
        if telling.is_told:
            self.told.append((self.now, subject, telling))
        return telling

    def work(self, subject: object) -> bool:
        """Let something work again."""
        told = self.outages.worked(KIND, subject, self.now)
        if told:
            self.ends.append((self.now, subject))
        return told

    def wait(self, seconds: float) -> None:
        """Let time pass, with a look every five seconds."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 5.0)
            self.outages.look(self.now)

    def flap(self, subject: object, seconds: float, *, every: float = 3.0, cause: str = "OSError") -> None:
        """Let something fail for half of the time."""
        end = self.now + seconds
        while self.now < end:
            self.fail(subject, cause)
            self.wait(every / 2)
            self.work(subject)
            self.wait(every / 2)


def test_an_outage_that_lasts_is_its_beginning_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is tried in between, and however long it lasts."""
    scene = Scene()
    for _ in range(10 * 60):
        scene.fail("a")
        scene.wait(60)
    assert scene.work("a")
    assert scene.told == [(0.0, "a", Telling.NEWS)]
    scene.wait(2 * HOUR)
    assert not caplog.messages
    assert len(scene.outages) == 0


def test_what_comes_and_goes_is_told_of_at_growing_intervals(caplog: pytest.LogCaptureFixture) -> None:
    """A handful of lines an hour; each with how often, since when, and the last cause."""
    scene = Scene()
    scene.flap("a", HOUR)
    assert scene.told == [(0.0, "a", Telling.NEWS)]
    assert scene.ends == [(1.5, "a")]
    assert 3 <= len(caplog.messages) <= 5
    first = r"Resources not available, again and again: key a, 3 times in 7.5 s, (for .* now|not at this moment)"
    assert re.match(first + r" \(last: OSError: no\)$", caplog.messages[0])
    assert {vars(record)["tenant"] for record in caplog.records} == {"a"}
    caplog.clear()
    scene.flap("a", 24 * HOUR)
    assert len(caplog.messages) <= 25


def test_the_end_for_good_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """When it has not failed for five minutes; what had an end of its own needs no other."""
    scene = Scene()
    scene.flap("a", 120)
    caplog.clear()
    scene.wait(2 * HOUR)
    *_, line = caplog.messages
    assert re.match(r"Resources not available, no more for \d+ s: key a, 40 times in 118 s until then$", line)
    assert sum("no more" in line for line in caplog.messages) == 1
    caplog.clear()
    scene.flap("a", HOUR)  # the next line would be due in an hour
    caplog.clear()
    scene.wait(CALM + 30)
    [line] = caplog.messages
    assert "no more for 30" in line
    scene.wait(2 * HOUR)
    assert len(caplog.messages) == 1
    caplog.clear()
    scene.fail("b")
    scene.wait(10)
    assert scene.work("b")
    scene.wait(2 * HOUR)
    assert not caplog.messages


def test_after_an_hour_without_a_failure_the_next_one_is_news() -> None:
    """And not before."""
    scene = Scene()
    scene.flap("a", 120)
    scene.wait(FORGOTTEN - 10)
    assert scene.fail("a") is Telling.KNOWN
    scene.work("a")
    scene.wait(FORGOTTEN + 10)
    assert scene.fail("a") is Telling.NEWS


def test_after_an_hour_a_failure_is_news_also_where_no_end_was_noted() -> None:
    """Who noted it may have forgotten it, as nothing was tried any longer; then it is another outage."""
    scene = Scene()
    scene.fail("a")
    scene.wait(FORGOTTEN - 10)
    assert scene.fail("a") is Telling.GOES_ON
    scene.wait(FORGOTTEN)
    assert scene.fail("a") is Telling.NEWS
    assert scene.work("a")
    scene.wait(2 * FORGOTTEN)
    assert len(scene.outages) == 0


def test_the_end_of_what_a_shared_line_told_is_said_also_after_hours(caplog: pytest.LogCaptureFixture) -> None:
    """As the end of what had a line of its own."""
    scene = Scene()
    for number in range(SINGLY + 5):
        scene.fail(f"t{number}")
    scene.wait(5 * HOUR)
    assert "too: 5 keys (t10, t11, t12, ...), 5 times" in caplog.messages[0]
    for number in range(SINGLY + 5):
        scene.work(f"t{number}")
    assert len(scene.ends) == SINGLY
    scene.wait(CALM + 30)
    assert "no more for 30" in caplog.messages[-1]
    assert "5 keys" in caplog.messages[-1]


def test_lines_name_whatever_they_tell_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Also where all of it is too much to remember, and of several that fail for long."""
    monkeypatch.setattr(outages, "MOST", SINGLY + 2)
    scene = Scene()
    for number in range(SINGLY + 4):
        scene.fail(f"t{number}")
    scene.wait(20)
    assert ": 2 keys (t10, t11) and 2 failures of others, not told apart, 4 times in" in caplog.messages[-1]
    scene.fail("t20")
    scene.wait(70)
    assert ", too: 1 failure of others, not told apart, 1 time in" in caplog.messages[-1]
    scene.fail("t10")
    scene.wait(60)
    scene.fail("t11")
    scene.fail("t21")
    scene.wait(60)
    assert "()" not in caplog.text


def test_another_cause_is_news() -> None:
    """Also in the middle of an outage; each of two causes that take turns is news once."""
    scene = Scene()
    scene.flap("a", 60)
    assert scene.fail("a", "TimeoutError") is Telling.NEWS
    for _ in range(100):
        scene.wait(1)
        assert scene.fail("a") is not Telling.NEWS
        assert scene.fail("a", "TimeoutError") is Telling.GOES_ON
    assert scene.work("a")
    assert [telling for _, _, telling in scene.told] == [Telling.NEWS, Telling.NEWS, Telling.LASTS]
    assert scene.ends == [(1.5, "a"), (160.0, "a")]


def test_one_of_many_outages_that_lasts_is_told_of_and_so_is_its_end() -> None:
    """It has lasted for a minute, or for twice as long as any other one of its kind."""
    scene = Scene()
    scene.flap("a", HOUR)
    began = scene.now
    for _ in range(20):
        scene.fail("a")
        scene.wait(6)
    assert scene.work("a")
    [at] = [at for at, _, telling in scene.told if telling is Telling.LASTS]
    assert 60 <= at - began <= 66
    assert len(scene.ends) == 2
    for _ in range(5):  # it flaps more slowly now
        for _ in range(12):
            scene.wait(15)
            scene.fail("a")
        scene.work("a")
    assert len([at for at, _, telling in scene.told if telling is Telling.LASTS]) == 1


def test_many_with_one_cause_share_lines(caplog: pytest.LogCaptureFixture) -> None:
    """The first ones are told of singly, all others are counted, and some are named; not one is left out."""
    scene = Scene()
    for number in range(1000):
        scene.fail(f"t{number}")
        scene.now += 0.01
    scene.wait(20)
    assert len(scene.told) == SINGLY
    [line] = caplog.messages
    names = r"Resources not available, too: 990 keys \(t10, t11, t12, \.\.\.\), 990 times in \d+ s, "
    assert re.match(names + r"1000 at this moment \(last, key t999: OSError: no\)$", line)
    caplog.clear()
    for number in range(1000):
        scene.work(f"t{number}")
    assert len(scene.ends) == SINGLY
    scene.wait(HOUR)
    [line] = caplog.messages
    assert re.match(r"Resources not available, no more for 30\d s: 990 keys \(most often t\d+ \(1\), ", line)


def test_a_crowd_that_comes_and_goes_is_bounded_in_all(caplog: pytest.LogCaptureFixture) -> None:
    """20,000 tenants that take turns: about a line a minute; what is remembered is bounded, and goes away."""
    scene = Scene()
    for number in range(60_000):
        scene.fail(f"t{number % 20_000}")
        if number > 100:
            scene.work(f"t{(number - 100) % 20_000}")
        scene.now += 0.1
        if number % 50 == 0:
            scene.outages.look(scene.now)
        assert len(scene.outages) <= MOST
    minutes = scene.now / 60
    assert len(scene.told) <= SINGLY + minutes / 2
    assert len(caplog.messages) <= minutes + 1
    assert any("and 10" in line and "not told apart" in line for line in caplog.messages)
    for number in range(20_000):
        scene.work(f"t{number}")
    scene.wait(FORGOTTEN + 120)
    assert len(scene.outages) == 0


def test_a_newcomer_among_many_is_named_within_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Although others with its cause come and go all day, and have had all the lines of their own."""
    scene = Scene()
    for number in range(SINGLY):
        scene.fail(f"t{number}")
        scene.work(f"t{number}")
    for _ in range(1000):
        scene.fail("t1")
        scene.wait(3)
        scene.work("t1")
        scene.wait(3)
    for number in range(100):  # nothing is left for single lines
        scene.fail(f"u{number}")
        scene.work(f"u{number}")
    scene.wait(70)
    caplog.clear()
    scene.fail("newcomer")
    scene.wait(65)
    assert any("newcomer" in line for line in caplog.messages)


def test_a_crowd_that_is_down_for_good_is_told_of_soon(caplog: pytest.LogCaptureFixture) -> None:
    """Also where the next line about what comes and goes would be due in an hour."""
    scene = Scene()
    tenants = [f"t{number}" for number in range(105)]
    for _ in range(400):
        for tenant in tenants:
            scene.fail(tenant)
        scene.wait(5)
        for tenant in tenants:
            scene.work(tenant)
        scene.wait(5)
    caplog.clear()
    for _ in range(13):
        for tenant in tenants:
            scene.fail(tenant)
        scene.wait(10)
    assert any("105 at this moment" in line for line in caplog.messages)
    for _ in range(6 * 60):
        for tenant in tenants:
            scene.fail(tenant)
        scene.wait(10)
    assert len(caplog.messages) <= 10


def test_what_was_repaired_is_news_again() -> None:
    """Someone has done something about it, and wants to know whether that helped."""
    scene = Scene()
    scene.flap("a", 60)
    scene.fail("a")
    scene.outages.forget(KIND, "a")
    scene.outages.forget(KIND, "b")
    assert scene.fail("a") is Telling.NEWS
    scene.outages.forget(KIND, "a")
    assert scene.work("a"), "a line has told that it failed"
    assert scene.fail("a") is Telling.NEWS
    assert scene.fail("a") is Telling.GOES_ON
    scene.work("a")
    assert scene.fail("a") is Telling.KNOWN
    scene.work("a")
    scene.wait(3 * FORGOTTEN)
    assert len(scene.outages) == 0


def test_what_happens_again_and_again_is_told_of_in_the_same_way(caplog: pytest.LogCaptureFixture) -> None:
    """Such as a health check that fails: it has no end, and is over at once."""
    scene = Scene()
    told = 0
    for _ in range(1200):
        told += scene.outages.happened(KIND, "a", "OSError", "OSError: no", scene.now)
        scene.wait(3)
    assert told == 1
    assert 3 <= len(caplog.messages) <= 5
    assert all("not at this moment" in line for line in caplog.messages)


def test_an_end_is_said_also_where_nothing_was_tried_for_hours() -> None:
    """For a day: the tenant had no messages."""
    scene = Scene()
    scene.fail("a")
    scene.wait(20 * HOUR)
    assert scene.work("a")
    scene.fail("b")
    scene.wait(30 * HOUR)
    assert len(scene.outages) == 0


def test_causes_without_end_are_told_apart_up_to_a_number() -> None:
    """An application may make a class for each error."""
    scene = Scene()
    told = sum(scene.fail("a", f"Error{number}").is_told for number in range(1000))
    assert told <= 60


@pytest.mark.parametrize("close", [False, True])
def test_a_timer_tells_of_what_is_due_and_the_end_of_the_rest(
    close: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing else has to happen for that."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        outages = Outages(loop)
        for _ in range(3):
            outages.failed(KIND, "a", "OSError", "OSError: no", loop.time())
            outages.worked(KIND, "a", loop.time())
        if close:
            outages.close()
            await asyncio.sleep(CALM + 30)
            assert len(caplog.messages) == 1
            return
        await asyncio.sleep(20)
        assert len(caplog.messages) == 1
        await asyncio.sleep(CALM + 30)
        assert len(caplog.messages) == 2
        outages.failed(KIND, "b", "OSError", "OSError: no", loop.time())
        outages.worked(KIND, "b", loop.time())
        await asyncio.sleep(2 * FORGOTTEN)
        assert len(outages) == 0
        assert not getattr(loop, "_scheduled", None)

    run_virtual(main())
    assert "again and again: key a, 3 times" in caplog.messages[0]


def test_the_timer_leaves_the_context_of_its_caller_alone() -> None:
    """A handler's: its message would stay in memory, and a filter would give its fields to lines about others."""
    message: ContextVar[str] = ContextVar("message", default="none")
    seen: list[str] = []

    class Spy(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            del record
            seen.append(message.get())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        told = Outages(loop)
        message.set("m-1")
        for _ in range(3):
            told.happened(KIND, "a", "OSError", "OSError: no", loop.time())
        await asyncio.sleep(20)
        told.close()

    spy, logger = Spy(), logging.getLogger("postroom.test")
    logger.addHandler(spy)
    run_virtual(main())
    logger.removeHandler(spy)
    assert seen == ["none"]


def test_a_summary_is_a_warning_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Tracebacks are for news; a name with a per cent sign is no format."""
    scene = Scene()
    scene.flap("100%s", 60)
    assert {(record.levelno, record.exc_info) for record in caplog.records} == {(logging.WARNING, None)}
    assert "key 100%s" in caplog.text


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (lambda: OSError("a"), lambda: OSError("b"), True),
        (lambda: OSError("a"), lambda: TimeoutError("a"), False),
        (lambda: with_state("53300"), lambda: with_state("53300"), True),
        (lambda: with_state("53300"), lambda: with_state("28P01"), False),
    ],
)
def test_errors_are_alike_by_their_type_and_state(
    one: Callable[[], Exception], other: Callable[[], Exception], *, alike: bool
) -> None:
    """Not by their text, which may name a port or a time."""
    assert (cause_of(one()) == cause_of(other())) is alike


def with_state(state: str) -> Exception:
    """Return what a driver of PostgreSQL raises."""
    error = RuntimeError("refused")
    error.sqlstate = state  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize("seed", range(100))
def test_whatever_happens_each_end_is_told_and_nothing_stays(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """In any order, with repairs, and with pauses from a second to hours."""
    random, scene = Random(seed), Scene()
    subjects = [f"t{number}" for number in range(random.choice([1, 3, 30]))]
    down: set[str] = set()
    for _ in range(200):
        subject, cause = random.choice(subjects), random.choice(["OSError", "OSError", "TimeoutError"])
        match random.choice(["fail", "fail", "fail", "work", "work", "repair", "wait"]):
            case "fail":
                if scene.fail(subject, cause).is_told:
                    down.add(subject)
            case "work":
                assert scene.work(subject) is (subject in down)
                down.discard(subject)
            case "repair":
                scene.outages.forget(KIND, subject)
            case _:
                scene.wait(random.choice([1, 5, 60, 400, 4000]))
    for subject in subjects:
        assert scene.work(subject) is (subject in down)
    scene.wait(2 * FORGOTTEN)
    assert len(scene.outages) == 0
    assert "()" not in caplog.text
    assert all(" no more for " in line or ", not at this moment" in line for line in caplog.messages[-1:])


def test_a_line_about_one_says_that_its_cause_is_that_of_another(caplog: pytest.LogCaptureFixture) -> None:
    """The cause may name the other one."""
    scene = Scene()
    for _ in range(2):
        scene.fail("a")
        scene.work("a")
    scene.fail("b")
    scene.wait(60)
    (line,) = [text for text in caplog.messages if ": key a, " in text]
    assert line.endswith("(last, key b: OSError: no)")

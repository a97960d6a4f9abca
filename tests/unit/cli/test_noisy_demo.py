"""The noisy demo: its ghost, its picture, and the whole of it with real databases."""

import os
import re
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from postroom.cli import main
from postroom.cli.demo.noisy import Diary, FirstComeFirstServed, picture


def test_under_first_come_first_served_everyone_waits_behind_the_flood() -> None:
    """A thousand messages before it keep one message from two slots for their whole time."""
    ghost = FirstComeFirstServed(slots=2, seconds=0.1)
    assert ghost.sent(0.0) == 0.0
    for _ in range(1_000):
        ghost.sent(1.0)
    assert ghost.sent(1.0) == pytest.approx(1.0 + 1_000 * 0.1 / 2)


def test_waits_are_those_of_quiet_tenants_in_the_last_seconds() -> None:
    """The flood's own waits do not count, nor does what is long past."""
    diary = Diary()
    diary.waits.append((diary.now() - 60.0, 30.0))
    diary.send("tenant-f")
    order = diary.send("tenant-a")
    diary.started("tenant-f", "tenant-f-0", order["sent"] - 9.0)
    diary.started("tenant-a", order["id"], order["sent"] - 1.5)
    ours, ghost = diary.look()
    assert ours == pytest.approx(1.5, abs=0.2)
    assert ghost < 0.2


def test_a_message_that_still_waits_counts_with_its_wait_so_far() -> None:
    """On both lines: else the one behind a flood would look best while nothing of it starts at all."""
    diary = Diary(ghost=FirstComeFirstServed(slots=1, seconds=60.0))
    diary.send("tenant-f")
    diary.send("tenant-a")
    diary.began -= 7.0
    ours, ghost = diary.look()
    assert ours == pytest.approx(7.0, abs=0.2)
    assert ghost == pytest.approx(7.0, abs=0.2)


def test_the_picture_shows_both_lines_on_one_scale_and_an_outage_in_red() -> None:
    """So that the contrast is seen."""
    diary = Diary(lines=[(0.1, 0.1), (0.1, 8.0)])
    rows = [("tenant-c", "unavailable", 0, 7, 1200), ("tenant-a", "active", 1, 0, 10)]
    text = picture(diary, rows, "it is killed", url="http://here/", width=10)
    assert "\033[31m  tenant-c" in text
    plain = click.unstyle(text)
    assert re.search(r"postroom +▁▁ +100 ms", plain)
    assert "█" in plain
    assert "1,200" in plain


def test_it_takes_none_of_the_other_storys_options() -> None:
    """With what to leave out."""
    result = CliRunner().invoke(main, ["demo", "--noisy", "--keep"])
    assert (result.exit_code, "leave the other options out" in result.output) == (2, True)


@pytest.mark.postgres
@pytest.mark.long
def test_the_whole_of_it_loses_nothing() -> None:
    """A flood, a PostgreSQL that is killed and comes back, and the rows counted at the end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "POSTROOM_"))}
    process = subprocess.run(
        [sys.executable, "-m", "postroom", "demo", "--noisy", "--seconds", "10", "--flood", "800",
         "--console-port", "0"],
        env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    assert "0 lost, 0 with a wrong tenant" in process.stdout
    assert "first come first served" in process.stdout
    assert "Traceback" not in process.stderr

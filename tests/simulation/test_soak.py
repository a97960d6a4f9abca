"""The long search: every seed once, and an interrupted one goes on where it ended."""

import json
from collections import Counter
from pathlib import Path

import pytest

from simulation import soak
from simulation.replay import main as replay


@pytest.mark.parametrize("done", [0, 25, 130])
def test_every_seed_is_searched_once(done: int) -> None:
    """Also after an interruption; kinds take turns, so that a short search sees each of them."""
    goals = {"consumer": 130, "pool": 1_000}
    progress = {"consumer": soak.Progress(done=done), "pool": soak.Progress(done=100)}
    units = list(soak._units(goals, progress))
    seeds = Counter((kind, seed) for kind, first, count in units for seed in range(first, first + count))
    assert seeds == Counter(
        [("consumer", seed) for seed in range(done, 130)] + [("pool", n) for n in range(100, 1_000)]
    )
    if not done:
        assert {kind for kind, _, _ in units[:4]} == {"consumer", "pool"}


def test_a_search_of_fresh_seeds_begins_where_it_is_told() -> None:
    """And forgets the progress of a search that began elsewhere."""
    progress = {"pool": soak._resumed({"done": 100, "seconds": 1.0, "failures": [], "first": 5_000}, 5_000)}
    assert next(soak._units({"pool": 1_000}, progress)) == ("pool", 5_100, 100)
    assert soak._resumed({"done": 100, "seconds": 1.0, "failures": []}, 5_000) == soak.Progress(first=5_000)


def test_violations_are_counted_by_oracle(capsys: pytest.CaptureFixture[str]) -> None:
    """So that one look shows which promise is broken how often."""
    soak._tell("consumer", [(9, "bytes at 3.1: kept"), (4, "S1 at 2: twice"), (2, "bytes at 1: kept"), (1, "stuck: x")])
    said = capsys.readouterr().out
    assert "consumer: bytes: 2 schedules, such as 2, 9\n" in said
    assert "consumer: stuck: 1 schedules, such as 1\n" in said


def test_what_was_found_is_told_with_the_command_that_replays_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the exit code says that there was something."""
    state = tmp_path / "state.json"
    state.write_text('{"consumer": {"done": 10, "seconds": 1.0, "failures": [[7, "S1 at 3.000: twice"]]}}')
    assert soak.main(["--kinds", "consumer", "--consumer", "10", "--jobs", "1", "--state", str(state)]) == 1
    assert "make replay KIND=consumer SEED=7" in capsys.readouterr().out


def test_a_replay_prints_the_history(capsys: pytest.CaptureFixture[str]) -> None:
    """From the first message to the last stop, and the plan."""
    assert replay(["consumer", "3"]) == 0
    said = capsys.readouterr().out
    assert "everything works again" in said
    assert "Plan(seed=3" in said
    assert said.rstrip().endswith("nothing was broken")


def test_a_replay_of_the_core_prints_its_history(capsys: pytest.CaptureFixture[str]) -> None:
    """From the first receive to the last acknowledgement, and the plan."""
    assert replay(["core", "0"]) == 0
    said = capsys.readouterr().out
    assert " received " in said
    assert "Plan(fifo=" in said
    assert said.rstrip().endswith("nothing was broken")


def test_one_kind_is_searched_and_the_others_go_on_where_they_were(tmp_path: Path) -> None:
    """``--kinds`` chooses; what was remembered of the other kinds stays."""
    state = tmp_path / "state.json"
    state.write_text('{"pool": {"done": 300, "seconds": 1.0, "failures": []}}')
    assert soak.main(["--kinds", "core", "--core", "20", "--jobs", "1", "--state", str(state)]) == 0
    known = json.loads(state.read_text())
    assert known["core"]["done"] == 20
    assert known["pool"]["done"] == 300


def test_every_kind_can_be_run() -> None:
    """The pool's schedules are found where they are."""
    for kind in ("consumer", "core", "pool", "contexts"):
        run = soak.runner(kind)
        assert run is not None
        assert run(1) == ()

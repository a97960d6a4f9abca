"""The fuzz targets, with their seeds and damaged copies of them; ``make fuzz`` searches on from there."""

import importlib.util
import sys
from pathlib import Path
from random import Random

import pytest

_PATH = Path(__file__).parents[2] / "fuzz" / "targets.py"
_spec = importlib.util.spec_from_file_location("fuzz_targets", _PATH)
assert _spec is not None
assert _spec.loader is not None
_targets = importlib.util.module_from_spec(_spec)
sys.modules["fuzz_targets"] = _targets  # dataclasses look their module up there
_spec.loader.exec_module(_targets)
SEEDS: dict[str, tuple[bytes, ...]] = _targets.SEEDS
TARGETS = _targets.TARGETS


def damaged(seed: bytes, rng: Random) -> bytes:
    """Return a copy with bytes changed, cut, doubled or put in."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0 if place < len(data):
                data[place] = rng.randrange(256)
            case 1:
                del data[place : place + rng.randrange(8)]
            case 2:
                data[place:place] = data[rng.randrange(len(data) + 1) :][:12]
            case _:
                data[place:place] = rng.choice((b"\x00", b"\xff", b'"', b"{", b"9" * 30, b"null", b"%00", b"-1", b"."))
    return bytes(data)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_input_brings_a_parser_down(name: str) -> None:
    """Seeds, and two thousand damaged copies: only the documented errors are raised."""
    rng = Random(name)
    for seed in SEEDS[name]:
        TARGETS[name](seed)
        for _ in range(2_000 // len(SEEDS[name])):
            TARGETS[name](damaged(seed, rng))

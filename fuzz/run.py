"""Coverage-guided fuzzing with atheris: ``python fuzz/run.py payload -max_total_time=60``.

Without a target all of them are run, one after the other. Inputs that reach new code are kept in ``.fuzz/<target>``.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one target in this process. Ends the process."""
    import atheris

    with atheris.instrument_imports(include=["postroom"]):
        import targets
    corpus = Path(".fuzz") / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], str(corpus), *options], targets.TARGETS[name])
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Fuzz the target that is named, or each in a process of its own."""
    names = [each for each in arguments if not each.startswith("-")]
    options = [each for each in arguments if each.startswith("-")]
    if names:
        fuzz(names[0], options)
        return 0
    worst = 0
    for name in ("attributes", "payload", "json", "query", "http"):
        print(f"== {name}", flush=True)
        worst = max(worst, subprocess.run([sys.executable, __file__, name, *options], check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main(sys.argv[1:]))

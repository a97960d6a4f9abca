"""Coverage-guided fuzzing with atheris: ``python fuzz/run.py payload -max_total_time=60``.

Without a target all of them are run, two at a time; what each says is in ``.fuzz/<target>.log``. Inputs that reach new
code are kept in ``.fuzz/<target>``, what breaks one in ``.fuzz``.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


def run(name: str, options: list[str]) -> int:
    """Fuzz a target in a process of its own, and say how it ended."""
    log = Path(".fuzz") / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, __file__, name, "-print_final_stats=1", "-artifact_prefix=.fuzz/", *options]
    with log.open("wb") as output:
        code = subprocess.run(command, check=False, stdout=output, stderr=subprocess.STDOUT).returncode
    said = log.read_text(errors="replace").splitlines()
    counts = [line.rpartition(" ")[2] for line in said if "number_of_executed_units" in line]
    print(f"{name}: {'no crash' if code == 0 else 'BROKEN'}, {counts[-1] if counts else 'unknown'} inputs", flush=True)
    if code:
        print("\n".join(said[-30:]), flush=True)
    return code


def main(arguments: list[str]) -> int:
    """Fuzz the target that is named, or each in a process of its own."""
    names = [each for each in arguments if not each.startswith("-")]
    options = [each for each in arguments if each.startswith("-")]
    if names:
        fuzz(names[0], options)
        return 0
    with ThreadPoolExecutor(2) as workers:
        codes = workers.map(lambda name: run(name, options), ("attributes", "payload", "json", "query", "http"))
        return max(codes)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main(sys.argv[1:]))

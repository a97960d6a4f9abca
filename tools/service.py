"""Build the wheel, install it as a team would, and run the FastAPI example from it on several versions of Python.

    python tools/service.py                  # 3.11 and 3.13
    python tools/service.py 3.12             # another one
    python tools/service.py --pair 3.14      # only install postroom beside boto3, for each version that is named

For each version: an environment with the wheel and what the example needs, the newest that there is; mypy and pyright,
both strict, over the example; the service with an outage of SQS and a SIGTERM under load, its traces, metrics and log;
and ``postroom check`` on set-ups that are wrong. The first thing that fails ends it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "service"
VERSIONS = ("3.11", "3.13")
PAIR_VERSIONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = "pydantic,asyncpg,otel,postgres-server"
NEEDS = (
    "fastapi", "uvicorn", "httpx", "opentelemetry-sdk", "opentelemetry-exporter-prometheus",
    "mypy", "pyright[nodejs]", "asyncpg-stubs",
)  # fmt: skip
CHECKERS = """
[tool.mypy]
strict = true
files = ["examples"]
explicit_package_bases = true
namespace_packages = true

[tool.pyright]
typeCheckingMode = "strict"
include = ["examples"]
venvPath = "."
venv = ".venv"
"""


def uv() -> str:
    """Return where uv is."""
    own = ROOT / ".uv" / "bin" / "uv"
    found = os.environ.get("UV") or (str(own) if own.exists() else shutil.which("uv"))
    if found is None:
        raise SystemExit("uv is missing: make test installs it, or name it with UV=...")
    return found


def interpreter(version: str) -> str:
    """Return a Python of a version: one of pyenv's, else what uv finds by its number."""
    versions = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}*/bin/python"))
    return str(versions[-1]) if versions else version


def call(*command: str | Path, where: Path = ROOT) -> None:
    """Run a command, and end with its exit code if that is not 0. The checkout is not on its path."""
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run([str(part) for part in command], cwd=where, env=clean, check=False)
    if done.returncode:
        print(f"exit code {done.returncode} of", *command, flush=True)
        raise SystemExit(done.returncode)


def build() -> Path:
    """Build the wheel."""
    shutil.rmtree(PLACE, ignore_errors=True)
    call(uv(), "build", "--quiet", "--wheel", "--out-dir", PLACE)
    [wheel] = PLACE.glob("*.whl")
    return wheel


def try_service(wheel: Path, version: str) -> None:
    """Install the wheel and the example for one version of Python, and try everything."""
    place = PLACE / version
    place.mkdir()
    say(f"Python {version}: install {wheel.name}[{EXTRAS}] and the example's own needs")
    call(uv(), "venv", "--quiet", "--python", interpreter(version), place / ".venv")
    python = place / ".venv" / "bin" / "python"
    call(uv(), "pip", "install", "--quiet", "--python", python, f"{wheel}[{EXTRAS}]", *NEEDS)
    (place / "examples").mkdir()
    shutil.copytree(ROOT / "examples" / "fastapi_app", place / "examples" / "fastapi_app")
    (place / "pyproject.toml").write_text(CHECKERS, encoding="utf-8")
    text = "import sys, postroom; print('Python', sys.version.split()[0], 'with', postroom.__file__)"
    call(python, "-c", text, where=place)
    say(f"Python {version}: mypy --strict, pyright strict")
    call(python, "-m", "mypy", where=place)
    call(python, "-m", "pyright", where=place)
    say(f"Python {version}: an outage of SQS, then SIGTERM under load")
    call(python, "-m", "examples.fastapi_app", "--outage", "--show", where=place)
    say(f"Python {version}: postroom check on set-ups that are wrong")
    call(python, "-m", "examples.fastapi_app", "--wrong", where=place)


def try_pair(wheel: Path, version: str) -> None:
    """Install postroom and boto3 by one command, as wheels for a version of Python that need not be here."""
    target = PLACE / f"pair-{version}"
    wanted = ("--python-version", version, "--only-binary", ":all:", "--target", str(target))
    call(uv(), "pip", "install", "--quiet", *wanted, str(wheel), "boto3")
    names = ("boto3", "botocore", "aiobotocore", "postroom")
    found = [path.name.removesuffix(".dist-info") for path in target.glob("*.dist-info")]
    chosen = sorted(name for name in found if name.partition("-")[0] in names)
    print(f"  Python {version}: {', '.join(chosen)}", flush=True)


def say(what: str) -> None:
    """Print a heading."""
    print(f"\n== {what}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Build, then try each version."""
    versions = [text for text in arguments if not text.startswith("-")]
    wheel = build()
    if "--pair" not in arguments:
        for version in versions or VERSIONS:
            try_service(wheel, version)
    say("boto3 beside postroom, installed by one command")
    for version in (versions if "--pair" in arguments else None) or PAIR_VERSIONS:
        try_pair(wheel, version)


if __name__ == "__main__":
    main(sys.argv[1:])

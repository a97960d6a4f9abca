"""Where each worker runs: its interpreter, with packages that may not go together with ours."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "postroom-bench"
NEWER = ("fanferro==0.5.0", "msgspec==0.22.0", "aiobotocore==3.10.0", "uvloop>=0.21", "--editable", str(ROOT))
TASKIQ = ("taskiq==0.13.0", "taskiq-aio-sqs==2.1.1")
PATIENCE = 300


class Missing(Exception):
    """A worker cannot run on this machine. Its text says why."""


@dataclass(frozen=True)
class Peer:
    """One consumer, as a benchmark shows it."""

    name: str
    worker: str
    environment: str = "ours"
    """``ours``, ``newer`` (Python 3.12 or later) or ``taskiq``."""
    told: Mapping[str, object] = field(default_factory=dict)
    envelope: str = "run"
    versions: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """Return the command that runs the worker. Raises ``Missing``."""
        return [str(interpreter(self.environment)), str(HERE / f"{self.worker}_worker.py")]

    def describe(self) -> str:
        """Return the versions of what it runs on, as its interpreter reports them."""
        names = ("platform.python_version()", *(f"metadata.version({name!r})" for name in self.versions))
        script = f"import platform; from importlib import metadata; print(*[{', '.join(names)}])"
        command = [str(interpreter(self.environment)), "-c", script]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split()
        return ", ".join(f"{name} {version}" for name, version in zip(("Python", *self.versions), told, strict=True))


POSTROOM = ("aiobotocore", "httptools", "msgspec")
PEERS = (
    Peer("postroom", "postroom", versions=POSTROOM),
    Peer("postroom, hot path off", "postroom", told={"hot_path": False}, versions=POSTROOM),
    Peer("postroom, newer Python", "postroom", environment="newer", versions=POSTROOM),
    Peer("postroom, newer Python, uvloop", "postroom", environment="newer", told={"uvloop": True},
         versions=(*POSTROOM, "uvloop")),
    Peer("fanferro", "fanferro", environment="newer", versions=("fanferro", "msgspec")),
    Peer("aiobotocore by hand", "by_hand", versions=("aiobotocore", "msgspec")),
    Peer("boto3 in threads", "boto3", versions=("boto3", "msgspec")),
    Peer("taskiq-aio-sqs", "taskiq", environment="taskiq", envelope="task",
         versions=("taskiq", "taskiq-aio-sqs", "aiobotocore")),
)  # fmt: skip


@cache
def interpreter(environment: str) -> Path:
    """Return an environment's interpreter; the environment is made once, outside of the checkout.

    Raises:
        Missing: it could not be made.
    """
    if environment == "ours":
        return Path(sys.executable)
    requirements, base = (TASKIQ, Path(sys.executable)) if environment == "taskiq" else (NEWER, _newer_python())
    folder = CACHE / environment
    python = folder / "bin" / "python"
    stamp = folder / "requirements"
    wanted = "\n".join((str(base), *requirements))
    if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
        _make(folder, base, requirements)
        stamp.write_text(wanted)
    return python


def _make(folder: Path, base: Path, requirements: tuple[str, ...]) -> None:
    local = ROOT / ".uv" / "bin" / "uv"
    uv = str(local) if local.exists() else shutil.which("uv")
    if uv is None:
        raise Missing("uv is not installed, which makes the environment")
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", str(base), str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *requirements],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            raise Missing(f"the environment could not be made: {done.stderr.strip().splitlines()[-1]}")


def _newer_python() -> Path:
    """Return the oldest interpreter that fanferro runs on, so that the comparison is with a Python much like ours."""
    for minor in (12, 13, 14):
        found = shutil.which(f"python3.{minor}")
        pyenv = Path.home() / ".pyenv" / "versions"
        candidates = [Path(found)] if found else []
        candidates += sorted(pyenv.glob(f"3.{minor}.*/bin/python3.{minor}"))
        for candidate in candidates:
            probe = [str(candidate), "-c", f"import sys; sys.exit(sys.version_info[:2] != (3, {minor}))"]
            if subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0:
                return candidate
    raise Missing("there is no Python 3.12 or later on this machine")

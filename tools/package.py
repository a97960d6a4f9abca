"""Build the sdist and the wheel, and check what a stranger gets of them.

    python tools/package.py              # all checks, on each Python from 3.11 to 3.14 that this machine has
    python tools/package.py --against REF  # compare the API with REF instead of the latest tag

Tools that only a release needs (twine, griffe) come with ``uvx``: they are no dependencies of the project.
"""

import argparse
import email
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
UV = str(ROOT / ".uv" / "bin" / "uv") if (ROOT / ".uv" / "bin" / "uv").exists() else "uv"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRAS = "pydantic,asyncpg,psycopg,sqlalchemy,otel,valkey,postgres-server"
FRAMEWORKS = ("django-stubs", "fastapi", "litestar", "pytest", "asyncpg-stubs", "opentelemetry-sdk")
SDIST = (
    "src", "tests", "docs", "examples", "benchmarks", "deploy", "fuzz", "tools",
    "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "mkdocs.yml", "pyproject.toml", "uv.lock",
)  # fmt: skip
GENERATED = {"PKG-INFO", ".gitignore"}
MESSAGE = """
from dataclasses import dataclass
from postroom import Consumer, MessageContext, Settlement
from postroom.testing import deliver, run_virtual

@dataclass(frozen=True)
class Tenant:
    tenant_id: str

orders = Consumer("orders", context=Tenant)

@orders.handler
async def handle(order: dict[str, int], ctx: MessageContext[Tenant]) -> None:
    assert (order, ctx.context) == ({"number": 1}, Tenant("acme"))

found = run_virtual(deliver(orders, {"number": 1}, context=Tenant("acme")))
assert found.settlement is Settlement.ACKED, found
"""


class Failed(Exception):
    """A check failed; the text says what to change."""


def run(*command: str, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command and return what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON", "VIRTUAL_"))}
    done = subprocess.run(
        command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"{' '.join(command)}\n{done.stdout[-4_000:]}{done.stderr[-4_000:]}")
    return done.stdout


def build() -> tuple[Path, Path]:
    """Build the sdist, and the wheel from the sdist: so the sdist has all that a build needs."""
    for old in DIST.glob("postroom-*"):
        old.unlink()
    run(UV, "build", "--quiet", "--out-dir", str(DIST))
    [sdist], [wheel] = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    return sdist, wheel


def check_sdist(sdist: Path) -> str:
    """Compare the sdist with what git has: nothing is missing, nothing else is there."""
    with tarfile.open(sdist) as archive:
        packed = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    wanted = set(run("git", "ls-files", *SDIST).splitlines())
    compare("the sdist", packed - GENERATED, wanted)
    return f"{len(packed)} files, {sdist.stat().st_size / 2**20:.1f} MiB"


def check_wheel(wheel: Path) -> str:
    """Compare the wheel with the package: its modules, py.typed, the demo's example, and nothing else."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = run("git", "ls-files", "src/postroom", "examples/multi_tenant_datasource").splitlines()
    wanted = {re.sub(r"^src/", "", re.sub(r"^examples/", "postroom/_examples/", name)) for name in files}
    compare("the wheel", packed, wanted)
    return f"{len(packed)} files, {wheel.stat().st_size / 2**20:.1f} MiB"


def compare(name: str, packed: set[str], wanted: set[str]) -> None:
    """Raise if what is packed is not what is wanted."""
    if packed != wanted:
        lacking, more = sorted(wanted - packed), sorted(packed - wanted)
        raise Failed(f"{name} lacks {lacking} and has {more} besides; see [tool.hatch.build] in pyproject.toml")


def check_metadata(sdist: Path, wheel: Path) -> str:
    """Let twine check both, and look at every link: on a page of an index no relative link works."""
    run(UV, "tool", "run", "twine", "check", "--strict", str(sdist), str(wheel))
    archive = zipfile.ZipFile(wheel)
    [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(archive.read(name))
    home = dict(entry.split(", ") for entry in metadata.get_all("Project-URL", ()))["Repository"]
    text = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    relative = [link for link in links if not link.startswith(("https://", "#"))]
    if relative:
        raise Failed(f"links in the README that are relative in the metadata: {relative}")
    dangling = [link for link in links if not _exists(link, home)]
    if dangling:
        raise Failed(f"links in the metadata to files that are not there: {dangling}")
    return f"twine is content; {len(links)} links, all absolute, their files are there"


def _exists(link: str, home: str) -> bool:
    inside = re.match(re.escape(home) + r"/(?:blob|raw|tree)/[^/]+/([^#]+)", link)
    return inside is None or (ROOT / inside.group(1)).exists()


def interpreters() -> dict[str, str]:
    """Return the interpreters of this machine by version. None is downloaded."""
    found: dict[str, str] = {}
    for version in PYTHONS:
        command = (UV, "python", "find", "--no-project", "--no-python-downloads", version)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))  # pyenv shows one version on PATH
        if done.returncode == 0 or kept:
            found[version] = done.stdout.strip() or str(kept[-1])
    return found


def check_installs(wheel: Path, directory: Path) -> str:
    """Install the wheel into empty environments, handle a message, and run the demo."""
    found = interpreters()
    for version, python in found.items():
        environment = directory / version
        run(UV, "venv", "--quiet", "--python", python, str(environment))
        bin_ = environment / "bin"
        install(environment, str(wheel))
        run(str(bin_ / "python"), "-I", "-c", MESSAGE, cwd=directory)
        run(str(bin_ / "postroom"), "--version", cwd=directory)
        install(environment, f"postroom[pydantic] @ {wheel.as_uri()}")
        run(str(bin_ / "postroom"), "demo", cwd=directory, HOME=str(directory))
    missing = [version for version in PYTHONS if version not in found]
    return f"{', '.join(found)}" + (f"; not on this machine, so not tried: {', '.join(missing)}" if missing else "")


def install(environment: Path, *packages: str) -> None:
    """Install packages into an environment."""
    run(UV, "pip", "install", "--quiet", "--python", str(environment / "bin" / "python"), *packages)


def check_types(wheel: Path, directory: Path) -> str:
    """Let pyright look at the installed package as a user's checker does: each public name has a known type."""
    environment = directory / "types"
    run(UV, "venv", "--quiet", "--python", sys.executable, str(environment))
    install(environment, f"postroom[{EXTRAS}] @ {wheel.as_uri()}", *FRAMEWORKS)
    command = (str(Path(sys.executable).parent / "pyright"), "--verifytypes", "postroom", "--ignoreexternal")
    variables = {
        **os.environ,
        "VIRTUAL_ENV": str(environment),
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        (*command, "--outputjson"), cwd=directory, env=variables, capture_output=True, text=True, check=False
    )  # fmt: skip
    report = json.loads(done.stdout)["typeCompleteness"]
    wrong = [f"{each['name']}: {found['message']}" for each in report["symbols"] for found in each["diagnostics"]]
    if report["completenessScore"] < 1:
        raise Failed(
            "\n".join([f"{report['completenessScore']:.1%} of the public names have a known type:", *wrong[:40]])
        )
    return f"{report['exportedSymbolCounts']['withKnownType']} public names, all with a known type"


def check_breaks(against: str | None) -> str:
    """Let griffe compare the API with the latest release. What the reference does not name is no part of the API."""
    tags = run("git", "tag", "--list", "v*", "--sort=-v:refname").splitlines()
    reference = against or next(iter(tags), None)
    if reference is None:
        return "no release to compare with yet"
    tool = (UV, "tool", "run", "--from", "griffecli", "griffecli", "check", "postroom", "--search", "src")
    done = subprocess.run((*tool, "--against", reference), cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("src/")]
    if done.returncode and not lines:
        raise Failed(done.stdout + done.stderr)
    breaks = [line for line in lines if _is_documented(line)]
    if breaks:
        raise Failed("\n".join([f"the API has changed since {reference}: name each in CHANGELOG.md", *breaks]))
    return f"no break since {reference} in what the reference documents ({len(lines)} changes inside)"


def _is_documented(line: str) -> bool:
    """Tell whether a line such as ``src/postroom/x.py:3: Consumer.run(y): ...`` is about a documented name."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    names = {
        name for page in pages for name in re.findall(r"^::: postroom[\w.]*\.(\w+)$", page.read_text(), re.MULTILINE)
    }
    found = re.match(r"[^:]+:\d+: (\w+)", line)
    return found is not None and found.group(1) in names


def main() -> int:
    """Run all checks; say what each found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REF", help="compare the API with this tag or commit")
    arguments = parser.parse_args()
    try:
        sdist, wheel = build()
        with tempfile.TemporaryDirectory(prefix="postroom-package-") as name:
            report(_steps(sdist, wheel, Path(name), arguments.against))
    except Failed as failed:
        print(f"failed: {failed}", file=sys.stderr)
        return 1
    return 0


def _steps(sdist: Path, wheel: Path, directory: Path, against: str | None) -> Iterable[tuple[str, str]]:
    yield "sdist", check_sdist(sdist)
    yield "wheel", check_wheel(wheel)
    yield "metadata", check_metadata(sdist, wheel)
    yield "types", check_types(wheel, directory)
    yield "installs", check_installs(wheel, directory)
    yield "API", check_breaks(against)


def report(steps: Iterable[tuple[str, str]]) -> None:
    """Print each step as it ends."""
    for name, found in steps:
        print(f"{name:10}{found}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

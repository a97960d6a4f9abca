"""Run the conformance suite against several servers and write the results side by side into docs/conformance.md.

    python tests/conformance/sqs/compare.py [--only postroom --only moto ...] [--results DIRECTORY]

postroom's own server is started by the suite itself; the others run in environments of their own, by `uv tool run`.
Only the parts of the page between its `generated` marks are written.
"""

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[3]
SUITE = Path(__file__).parent
PAGE = ROOT / "docs" / "conformance.md"
STAR = "\\*"

sys.path.insert(0, str(ROOT / "tests"))

from conformance.sqs.checks import page_url  # noqa: E402 - the path above makes it importable
from conformance.sqs.clients import PREFIX  # noqa: E402


@dataclass(frozen=True)
class Server:
    """Describe a server: the package that `uv tool run` takes, the command, and where its port goes."""

    name: str
    package: str = ""
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


SERVERS = (
    Server("postroom"),
    Server(
        "ministack",
        package="ministack==1.5.33",
        command=("ministack",),
        environment={"GATEWAY_PORT": "{port}", "BIND_HOST": "127.0.0.1"},
    ),
    Server("moto", package="moto[server]==5.2.5", command=("moto_server", "-H", "127.0.0.1", "-p", "{port}")),
)


@dataclass(frozen=True)
class Check:
    """Hold one test case and what it says of itself."""

    name: str
    group: str
    page: str
    sentence: str
    recorded: bool


@dataclass(frozen=True)
class Run:
    """Hold the results of one server."""

    server: Server
    seconds: float
    passed: dict[Check, bool]


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(server: Server) -> Iterator[str | None]:
    """Start the server and yield its address; None where the suite starts its own."""
    if not server.package:
        yield None
        return
    port = free_port()
    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    arguments = [part.format(port=port) for part in server.command]
    environment = {key: value.format(port=port) for key, value in server.environment.items()}
    process = subprocess.Popen(
        [uv, "tool", "run", "--from", server.package, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)  # uv's child is the server: its own session ends with it
        process.wait(30)


def wait_for(port: int, process: subprocess.Popen[bytes], *, within: float = 120) -> None:
    """Wait until the port accepts a connection; raise TimeoutError or ChildProcessError otherwise."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ChildProcessError(f"the server ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


def judge(server: Server, results: Path) -> Run:
    """Run the suite against the server."""
    report = results / f"{server.name}.xml"
    with running(server) as address:
        environment = {key: value for key, value in os.environ.items() if key != f"{PREFIX}ENDPOINT"}
        if address:
            environment[f"{PREFIX}ENDPOINT"] = address
        options = ["-q", "-n", "2", "--tb=line", "-p", "no:cacheprovider", f"--junitxml={report}"]
        log = results / f"{server.name}.log"
        start = time.monotonic()
        with log.open("wb") as output:
            command = [sys.executable, "-m", "pytest", *options, str(SUITE)]
            subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    return Run(server, time.monotonic() - start, read(report))


def read(report: Path) -> dict[Check, bool]:
    """Read pytest's report."""
    results: dict[Check, bool] = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - written by the run above
        noted = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
        module = case.get("classname", "").rpartition(".")[2]
        check = Check(
            name=f"{module}::{case.get('name')}",
            group=noted["group"],
            page=noted["page"],
            sentence=noted["sentence"],
            recorded=noted["recorded"] == "True",
        )
        results[check] = not list(case.iter("failure")) and not list(case.iter("error"))
    return results


def summary(runs: list[Run]) -> list[str]:
    """Return the table of groups and servers."""
    names = [run.server.name for run in runs]
    lines = [f"| group | checks | {' | '.join(names)} |", f"|---|---:|{'---:|' * len(names)}"]
    groups = list(dict.fromkeys(check.group for check in runs[0].passed))
    for group in sorted(groups):
        checks = [check for check in runs[0].passed if check.group == group]
        lines.append(f"| {group} | {len(checks)} | {' | '.join(str(count(run, checks)) for run in runs)} |")
    everything = list(runs[0].passed)
    shares = [f"**{count(run, everything)}** ({count(run, everything) / len(everything):.0%})" for run in runs]
    lines.append(f"| **all** | **{len(everything)}** | {' | '.join(shares)} |")
    versions = ", ".join(run.server.package.replace("[server]", "") for run in runs if run.server.package)
    seconds = ", ".join(f"{run.server.name} {run.seconds:.0f} s" for run in runs)
    lines += ["", f"Run on {datetime.now(UTC):%d %B %Y} against {versions} and this checkout. Wall time: {seconds}."]
    return lines


def count(run: Run, checks: list[Check]) -> int:
    """Return how many of the checks the server passes."""
    return sum(run.passed.get(check, False) for check in checks)


def by_function(runs: list[Run]) -> list[list[Check]]:
    """Gather the cases of each test function, in the order of groups and names."""
    found: dict[tuple[str, str], list[Check]] = {}
    for check in runs[0].passed:
        found.setdefault((check.group, check.name.partition("[")[0]), []).append(check)
    return [found[key] for key in sorted(found)]


def unproven(runs: list[Run]) -> list[str]:
    """Return the checks that no server passes."""
    failed = [check for check in runs[0].passed if not any(run.passed.get(check) for run in runs)]
    if not failed:
        return ["None: every check is passed by at least one server."]
    return [f"* `{check.name}` ({link(check)}): {check.sentence}" for check in sorted(failed, key=lambda c: c.name)]


def alone(runs: list[Run]) -> list[str]:
    """Return how many checks only the first server passes: they have no second witness."""
    first, others = runs[0], runs[1:]
    mine = [c for c, good in first.passed.items() if good and not any(run.passed.get(c) for run in others)]
    noted = sum(check.recorded for check in mine)
    return [
        f"{len(mine)} checks are passed by {first.server.name} only. They have no second witness among these servers:",
        f"{noted} of them rest on recorded answers of SQS itself, {len(mine) - noted} on the documentation alone.",
    ]


def differences(runs: list[Run]) -> list[str]:
    """Return every test function that some server fails, with the number of cases each of them passes."""
    names = [run.server.name for run in runs]
    lines: list[str] = []
    group = ""
    for cases in by_function(runs):
        marks = [mark(count(run, cases), len(cases)) for run in runs]
        if set(marks) == {"yes"}:
            continue
        first = cases[0]
        if first.group != group:
            group = first.group
            lines += [
                "",
                f"### {group}",
                "",
                f"| page | check | {' | '.join(names)} |",
                "|---|---|" + "---|" * len(runs),
            ]
        lines.append(f"| {link(first)} | {first.sentence.replace('|', '&#124;')} | {' | '.join(marks)} |")
    return lines[1:]


def link(check: Check) -> str:
    """Return the reference to a check's page, with a star when a detail of it was taken from recorded answers."""
    star = STAR if check.recorded else ""
    return f"[{check.page.rpartition('/')[2]}]{star}"


def pages(runs: list[Run]) -> list[str]:
    """Return the addresses of all pages."""
    slugs = sorted({check.page for check in runs[0].passed})
    return [f"[{slug.rpartition('/')[2]}]: {page_url(slug)}" for slug in slugs]


def mark(passed: int, total: int) -> str:
    """Return yes, no, or how many of how many."""
    if passed == total:
        return "yes"
    return f"{passed} of {total}" if passed else "no"


def write(runs: list[Run]) -> None:
    """Write the generated parts of the page."""
    page = PAGE.read_text()
    for part in (summary, unproven, alone, differences, pages):
        name = part.__name__
        found = re.search(rf"<!-- generated: {name} -->.*?<!-- end -->", page, flags=re.DOTALL)
        if found is None:
            raise LookupError(f"{PAGE} has no place for {name!r}")
        block = "\n".join([f"<!-- generated: {name} -->", "", *part(runs), "", "<!-- end -->"])
        page = page[: found.start()] + block + page[found.end() :]
    PAGE.write_text(page)


def main() -> None:
    """Judge the servers, one after the other, and write the page when all of them were judged."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [server.name for server in SERVERS]
    parser.add_argument("--only", action="append", choices=names, help="judge this server and write no page")
    parser.add_argument("--results", type=Path, help="keep reports and logs in this directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        results: Path = arguments.results or Path(temporary)
        results.mkdir(parents=True, exist_ok=True)
        runs = []
        for server in SERVERS:
            if not arguments.only or server.name in arguments.only:
                runs.append(judge(server, results))
                total = len(runs[-1].passed)
                print(f"{server.name}: {count(runs[-1], list(runs[-1].passed))} of {total}, {runs[-1].seconds:.0f} s")
    if not arguments.only:
        write(runs)


if __name__ == "__main__":
    main()

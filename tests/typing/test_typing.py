"""Type checkers see what the design promises: they infer contexts and resources, and find the mistakes.

Files in ``accepted`` have no error. In ``rejected`` each line that must fail says so, ``# E: mypy(arg-type)
pyright(reportArgumentType)``, and no other line may: an error that is missing fails just as one too many.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = sorted([*HERE.glob("accepted/*.py"), *HERE.glob("rejected/*.py")])
CHECKERS = ("mypy", "pyright")

Finding = tuple[str, int, str]
"""File, line, and the checker's name of the error."""

pytestmark = [pytest.mark.typing, pytest.mark.timeout(300)]

_MYPY_ERROR = re.compile(r"^(?P<file>[^:\n]+\.py):(?P<line>\d+): error: .*\[(?P<code>[\w-]+)\]$", re.MULTILINE)
_MARKER = re.compile(r"# E: (?P<errors>.+)$")
_EXPECTED = re.compile(r"(?P<checker>mypy|pyright)\((?P<code>[\w-]+)\)")


def known(file: Path) -> str:
    """Return how a file of ours is called; nothing for one of the library, which is checked elsewhere."""
    return str(file.relative_to(HERE)) if file in FILES else ""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a checker of this environment in the project's root, where its configuration is."""
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def run_mypy(cache: Path) -> Counter[Finding]:
    """Return what mypy --strict finds."""
    # A cache of its own: another mypy may be running in this checkout.
    done = run("mypy", "--strict", "--no-pretty", "--cache-dir", str(cache), *map(str, FILES))
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    errors = _MYPY_ERROR.finditer(done.stdout)
    return Counter((name, int(e["line"]), e["code"]) for e in errors if (name := known(ROOT / e["file"])))


def run_pyright() -> Counter[Finding]:
    """Return what pyright in strict mode finds."""
    done = run("pyright", "--project", str(HERE), "--pythonpath", sys.executable, "--outputjson")
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(FILES)
    return Counter(
        (name, found["range"]["start"]["line"] + 1, found.get("rule", ""))
        for found in report["generalDiagnostics"]
        if found["severity"] == "error" and (name := known(Path(found["file"])))
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[Finding]]:
    """Run both checkers once for all tests of this module."""
    return {"mypy": run_mypy(tmp_path_factory.mktemp("mypy")), "pyright": run_pyright()}


def expected(checker: str) -> Counter[Finding]:
    """Return what the markers in the files say that a checker finds."""
    findings: Counter[Finding] = Counter()
    for file in FILES:
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            marker = _MARKER.search(line)
            for error in _EXPECTED.finditer(marker["errors"] if marker else ""):
                if error["checker"] == checker:
                    findings[known(file), number, error["code"]] += 1
    return findings


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_checker_finds_exactly_the_marked_mistakes(checker: str, found: dict[str, Counter[Finding]]) -> None:
    """Every marked line fails as it is marked, and what is accepted or unmarked does not fail."""
    missing, surplus = expected(checker) - found[checker], found[checker] - expected(checker)
    assert (sorted(missing.elements()), sorted(surplus.elements())) == ([], [])


@pytest.mark.parametrize("checker", CHECKERS)
def test_every_mistake_is_found_by_both_checkers(checker: str) -> None:
    """A user is protected by whichever checker is in use: no marker names one of them only."""
    lines = {(file, line) for name in CHECKERS for file, line, _ in expected(name)}
    assert {(file, line) for file, line, _ in expected(checker)} == lines
    assert lines


def test_accepted_files_have_no_markers() -> None:
    """What is accepted is accepted as it stands."""
    assert not [file for file in FILES if file.parent.name == "accepted" and "# E:" in file.read_text()]

"""Measure how the project is written, and find words that were retired.

    python tools/language.py           # a table: words, comments and line lengths, by part of the project
    python tools/language.py --check   # name each retired word

Words are counted in documents, and in the comments and strings of code. The figures are per 10,000 words, those of
comments per 100 lines of code.
"""

import io
import re
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEOPLE = "nobody|somebody|whoever|whomever|whosoever|whom|whose"
DATED = "anew|of late|at the most|for ever|surely|any more|as it were"
JARGON = "put off|puts off|let in|lets in"
RETIRED = re.compile(rf"\b({PEOPLE}|{DATED}|{JARGON})\b", re.IGNORECASE)
VALUE = re.compile(rf"[\"']({PEOPLE})('s| else)?[\"']")
"""A string that is one such word alone: a value, such as the name of an account."""
PARTS = {
    "source": ("src/**/*.py",),
    "documents": ("docs/**/*.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/**/*.md"),
    "examples": ("examples/**/*.py",),
    "tests": ("tests/**/*.py", "benchmarks/**/*.py"),
}


@dataclass
class Figures:
    """What one part of the project is like."""

    words: int = 0
    people: int = 0
    dated: int = 0
    comments: int = 0
    code: int = 0
    lengths: list[int] = field(default_factory=list)

    def row(self, name: str) -> str:
        """Return a row of the table."""
        per = 10_000 / max(1, self.words)
        comments = f"{100 * self.comments / self.code:.1f}" if self.code else ""
        length = f"{statistics.quantiles(self.lengths, n=20)[-1]:.0f}" if len(self.lengths) > 1 else ""
        return f"| {name} | {self.words:,} | {self.people * per:.1f} | {self.dated * per:.1f} | {comments} | {length} |"


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the prose of a file with its line numbers: all of a document; comments and strings of code."""
    text = path.read_text()
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING} and not VALUE.fullmatch(token.string):
            yield from enumerate(token.string.splitlines(), token.start[0])


def files_of(part: str) -> list[Path]:
    """Return the files of a part of the project."""
    return sorted(path for pattern in PARTS[part] for path in ROOT.glob(pattern))


def measure(part: str) -> Figures:
    """Count."""
    figures = Figures()
    for path in files_of(part):
        for _, line in prose_of(path):
            figures.words += len(re.findall(r"\w+", line))
            figures.people += len(re.findall(rf"\b({PEOPLE})\b", line, re.IGNORECASE))
            figures.dated += len(re.findall(rf"\b({DATED})\b", line, re.IGNORECASE))
            if not line.startswith("|"):
                figures.lengths.append(len(line))
        if path.suffix == ".py":
            count_lines(path, figures)
    return figures


def count_lines(path: Path, figures: Figures) -> None:
    """Count the lines of code and the comments, except those for tools."""
    kinds = Counter[str]()
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            kinds["comment"] += not re.match(r"# (noqa|type:|pyright:|pragma)", token.string)
        elif token.type in {tokenize.NAME, tokenize.OP, tokenize.NUMBER}:
            lines.add(token.start[0])
    figures.comments += kinds["comment"]
    figures.code += len(lines)


def retired() -> list[str]:
    """Return where retired words are used."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {match.group()!r}: {line.strip()[:90]}"
        for part in PARTS
        for path in files_of(part)
        for number, line in prose_of(path)
        for match in RETIRED.finditer(line)
    ]


def main() -> int:
    """Print the table, or what is wrong."""
    if "--check" in sys.argv[1:]:
        found = retired()
        print(*found, sep="\n", end="\n" if found else "")
        return 1 if found else 0
    print("| part | words | nobody, whose ... | anew, for ever ... | comments per 100 lines | line length p95 |")
    print("|---|---|---|---|---|---|")
    for part in PARTS:
        print(measure(part).row(part))
    return 0


if __name__ == "__main__":
    sys.exit(main())

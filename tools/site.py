"""Build the documentation site into build/site, with every file of the repository that a page links to.

    python tools/site.py

The builder leaves a link that leads out of docs/ as it is: on GitHub it leads to the file, on the site to nothing. So
such files are copied into the site, and the links are changed. A link that still leads nowhere fails the build, and so
does one to a section that its page does not have.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from os.path import relpath
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "site"
ANCHOR = re.compile(r'(?<=[ \n])href="([^"#?:]*)#([^"]+)"')
LINK = re.compile(r'(?<=[ \n])(href|src)="([^"#?]+)((?:[#?][^"]*)?)"')


def targets(page: Path, site: Path) -> Iterator[tuple[str, Path]]:
    """Yield each link of a page within its own site, as it is written, with the path that it leads to."""
    for match in LINK.finditer(page.read_text()):
        link = match.group(2)
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc:
            start = site if parts.path.startswith("/") else page.parent
            yield link, (start / unquote(parts.path).lstrip("/")).resolve()


def bring(page: Path, site: Path, root: Path) -> None:
    """Copy the files of the repository that a page links to into the site, and let its links lead there."""
    text = page.read_text()
    for link, path in dict(targets(page, site)).items():
        if path.is_relative_to(site):
            continue
        # But for index.html, a page of docs/ became a folder of the site, and the builder added one "../".
        folder = page.relative_to(site).parent
        written = link if page.parent == site else link.removeprefix("../")
        source = (root / "docs" / folder.parent / written).resolve()
        if not source.is_file() or not source.is_relative_to(root):
            continue
        copy = site / source.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        text = text.replace(f'href="{link}"', f'href="{relpath(copy, page.parent)}"')
    page.write_text(text)


def broken(site: Path) -> list[str]:
    """Return the links that lead nowhere, with their pages."""
    found: list[str] = []
    for page in sorted(site.rglob("*.html")):
        if page.name == "404.html":  # served at any depth: its links are absolute
            continue
        for link, path in targets(page, site):
            there = path / "index.html" if path.is_dir() else path
            if not there.is_file() or not there.is_relative_to(site):
                found.append(f"{page.relative_to(site)}: {link}")
    return found


def dead_anchors(site: Path) -> list[str]:
    """Return the links to a place on a page of the site that the page does not have, with their pages."""
    found: list[str] = []
    for page in sorted(site.rglob("*.html")):
        for link, place in ANCHOR.findall(page.read_text()):
            target = (page.parent / unquote(link)).resolve() if link else page
            there = target / "index.html" if target.is_dir() else target
            if there.suffix == ".html" and there.is_file() and unquote(place) not in _places(there):
                found.append(f"{page.relative_to(site)}: {link}#{place}")
    return found


@cache
def _places(page: Path) -> frozenset[str]:
    return frozenset(re.findall(r'\bid="([^"]+)"', page.read_text()))


def main() -> int:
    """Build, and say what leads nowhere."""
    program = Path(sys.executable).with_name("zensical")
    if subprocess.run([program, "build", "--clean", "--strict"], cwd=ROOT, check=False).returncode:
        return 1
    for page in SITE.rglob("*.html"):
        bring(page, SITE, ROOT)
    wrong = broken(SITE) + dead_anchors(SITE)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

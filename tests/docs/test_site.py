"""The site is complete: every page is in its navigation, every public name and command in its reference."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import postroom

ROOT = Path(__file__).parents[2]


def tool(name: str) -> ModuleType:
    """Return a program of tools/ as a module."""
    spec = spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The program that writes the reference pages."""
    return tool("reference")


def pages_of(entry: object) -> set[str]:
    """Return the pages of a part of the navigation."""
    match entry:
        case str():
            return {entry}
        case list():
            return {page for each in entry for page in pages_of(each)}
        case dict():
            return {page for each in entry.values() for page in pages_of(each)}
    raise AssertionError(entry)


def test_every_page_is_in_the_navigation() -> None:
    """And the navigation names no page that is missing."""
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    docs = ROOT / "docs"
    assert pages_of(navigation) == {str(path.relative_to(docs)) for path in docs.rglob("*.md")}


def test_every_public_name_is_in_the_reference(reference: ModuleType) -> None:
    """A name that is added to the package has to be put on a page."""
    assert set(postroom.__all__) <= reference.described()


def test_the_reference_is_of_today() -> None:
    """Commands, options and names are those of the code."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stdout


def test_a_file_that_a_page_links_to_is_brought_along(tmp_path: Path) -> None:
    """A link out of docs/ leads to a copy within the site; one that leads nowhere is named."""
    site = tmp_path / "site"
    (tmp_path / "docs").mkdir()
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "Dockerfile").write_text("FROM scratch")
    page, home = site / "deployment" / "index.html", site / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(
        '<a href="../../deploy/Dockerfile">it</a> <a href="../gone/#there">gone</a> <a href="https://a.b/">'
    )
    home.write_text('<a href="../deploy/Dockerfile">it</a> <a href="deployment/">there</a> <img src="no.svg">')
    tools = tool("site")
    for each in (page, home):
        tools.bring(each, site, tmp_path)
    assert '"../deploy/Dockerfile"' in page.read_text()
    assert '"deploy/Dockerfile"' in home.read_text()
    assert (site / "deploy" / "Dockerfile").read_text() == "FROM scratch"
    assert tools.broken(site) == ["deployment/index.html: ../gone/", "index.html: no.svg"]


def test_a_link_to_a_section_that_is_gone_is_named(tmp_path: Path) -> None:
    """On its own page and on another one; a section that is there is found on both."""
    (tmp_path / "pool").mkdir()
    home, pool = tmp_path / "index.html", tmp_path / "pool" / "index.html"
    home.write_text('<h1 id="start"> <a href="#start"> <a href="pool/#life"> <a href="pool/#gone">')
    pool.write_text('<h2 id="life"> <a href="#life"> <a href="../#start"> <a href="../#end">')
    assert tool("site").dead_anchors(tmp_path) == ["index.html: pool/#gone", "pool/index.html: ../#end"]

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


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The program that writes the reference pages."""
    spec = spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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

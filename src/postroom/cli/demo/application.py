"""Finds the public example, which is the demo's application code."""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import postroom

_INSTALLED = "postroom._examples.multi_tenant_datasource"


def example(module: str) -> ModuleType:
    """Import a module of the example: from the installed package, or from the checkout that this package lies in.

    Raises:
        ModuleNotFoundError: neither is there.
    """
    if _INSTALLED not in sys.modules and not (Path(postroom.__file__).parent / "_examples").is_dir():
        _load_from_checkout(Path(postroom.__file__).parents[2] / "examples" / "multi_tenant_datasource")
    return import_module(f"{_INSTALLED}.{module}")


def _load_from_checkout(directory: Path) -> None:
    """Make the checkout's example known under the name that it has in an installed package."""
    spec = spec_from_file_location(_INSTALLED, directory / "__init__.py", submodule_search_locations=[str(directory)])
    if spec is None or spec.loader is None or not directory.is_dir():
        raise ModuleNotFoundError(f"the example is neither installed nor in {directory}", name=_INSTALLED)
    parent = ModuleType(_INSTALLED.rpartition(".")[0])
    parent.__path__ = []
    sys.modules.setdefault(parent.__name__, parent)
    package = module_from_spec(spec)
    sys.modules[_INSTALLED] = package
    spec.loader.exec_module(package)

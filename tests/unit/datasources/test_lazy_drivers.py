"""Drivers are extras: importing the package imports none of them."""

import subprocess
import sys

import pytest

import postroom.datasources
from postroom.datasources import asyncpg, psycopg, sqlalchemy


def test_no_driver_is_imported_before_its_name_is_used() -> None:
    """A process without any driver can import the package."""
    script = (
        "import sys, postroom.datasources as d\n"
        "drivers = {'asyncpg', 'psycopg', 'psycopg_pool', 'sqlalchemy'}\n"
        "assert not drivers & set(sys.modules), drivers & set(sys.modules)\n"
        "d.asyncpg_pool\n"
        "assert 'asyncpg' in sys.modules and 'psycopg' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_public_name_can_be_had() -> None:
    """__all__ and the lazy names agree."""
    for name in postroom.datasources.__all__:
        assert getattr(postroom.datasources, name) is not None
    assert postroom.datasources.asyncpg_pool is asyncpg.asyncpg_pool
    assert postroom.datasources.psycopg_pool is psycopg.psycopg_pool
    assert postroom.datasources.sqlalchemy_engine is sqlalchemy.sqlalchemy_engine


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for any module."""
    with pytest.raises(AttributeError, match="no attribute 'oracle_pool'"):
        getattr(postroom.datasources, "oracle_" + "pool")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "sqlalchemy"])
def test_a_missing_driver_says_what_to_install(driver: str) -> None:
    """The extra is in the text."""
    script = (
        f"import sys; sys.modules[{driver!r}] = None\n"
        "try:\n"
        f"    import postroom.datasources.{driver}\n"
        "except ModuleNotFoundError as error:\n"
        f"    assert 'postroom[{driver}]' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('it was imported')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

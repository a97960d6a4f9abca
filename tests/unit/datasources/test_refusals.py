"""A login that PostgreSQL refuses, as libpq tells psycopg: without its SQLSTATE."""

import psycopg
import pytest

from postroom.datasources._psycopg_refusals import refusal_of
from postroom.datasources._waiting import is_out_of_room

SAID = {
    'password authentication failed for user "app"': "28P01",
    'database "acme" does not exist': "3D000",
    'no pg_hba.conf entry for host "10.0.0.1", user "app", database "acme", no encryption': "28000",
    "sorry, too many clients already": "53300",
    'too many connections for role "app"': "53300",
    'too many connections for database "acme"': "53300",
    "remaining connection slots are reserved for roles with the SUPERUSER attribute": "53300",
    "remaining connection slots are reserved for non-replication superuser connections": "53300",
    "the database system is starting up": "57P03",
}


@pytest.mark.parametrize("text", SAID)
def test_a_refused_login_has_the_sqlstate_that_the_server_gave_it(text: str) -> None:
    """What follows is decided by it: a tenant without room for one more connection waits for one of its own."""
    said = f'connection to server at "10.0.0.1", port 5432 failed: FATAL:  {text}\n'
    refusal = refusal_of(psycopg.OperationalError(said))
    assert refusal is not None
    assert refusal.sqlstate == SAID[text]
    assert str(refusal) == said
    assert is_out_of_room(refusal, 1) == (SAID[text] == "53300")

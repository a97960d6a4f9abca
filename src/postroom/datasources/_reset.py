"""What a PostgreSQL connection forgets before its next user gets it.

``DISCARD ALL`` would forget the statements that the drivers have prepared as well, and each of them
would be prepared again at its next use. So everything else is named, in one round trip: a tenth of
a millisecond of the server's time.
"""

from typing import Final

RESET: Final = (
    "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); "
    "DISCARD SEQUENCES; DISCARD TEMP; SELECT name FROM pg_prepared_statements WHERE from_sql"
)
"""Its last result lists the statements of SQL's own PREPARE, which are rare: ``DEALLOCATE`` is for them.

``RESET SESSION AUTHORIZATION`` comes first: only the user who logged in may reset everything else.
"""

DEALLOCATE: Final = (
    "DO $$ DECLARE found text; BEGIN FOR found IN SELECT name FROM pg_prepared_statements WHERE from_sql "
    "LOOP EXECUTE format('DEALLOCATE %I', found); END LOOP; END $$"
)

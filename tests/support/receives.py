"""How often a queue hands a message out before it is a dead letter, for tests that hold for every number."""

import pytest

_SOME = {1, 2, 3, 4, 5, 10, 20}
"""Those at which something else happens than at their neighbours; ``make long`` takes the rest, too."""

LIMITS = [pytest.param(most, marks=() if most in _SOME else pytest.mark.long) for most in range(1, 21)]
"""``maxReceiveCount`` from 1 to 20."""

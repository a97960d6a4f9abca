"""A consumer with its tests: each kind of test that a service needs, and what it costs."""

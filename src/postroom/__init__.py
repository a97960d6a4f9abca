"""postroom."""

"""The migrations, the same for every tenant."""

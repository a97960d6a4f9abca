"""A database per tenant with SQLAlchemy's ORM, and effects exactly once."""

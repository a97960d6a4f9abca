"""Django with a database per tenant, and a management command that consumes."""

"""A FastAPI service that sends and consumes orders, with a database per tenant."""

"""Tenants that share one PostgreSQL database, kept apart by row-level security; each order is recorded once."""

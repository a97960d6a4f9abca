"""One API client per environment: production, staging, development."""

"""Clients: AWS, and the in-process local broker, behind one protocol."""

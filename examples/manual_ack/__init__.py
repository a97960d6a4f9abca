"""Acknowledge by hand, after work that goes on when the handler has returned."""

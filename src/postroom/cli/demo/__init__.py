"""``postroom demo``: the main job, end to end, on this machine."""

from postroom.cli.demo.command import demo

__all__ = ["demo"]

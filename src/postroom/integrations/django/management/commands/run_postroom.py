"""``python manage.py run_postroom``: consumers as the main job of a process, with Django set up."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from postroom.consumer.loading import WrongName, check_each_once, load_consumers
from postroom.consumer.runner import run_to_exit
from postroom.integrations.health import HealthServer
from postroom.types import ExitCode

_TO_CHANGE: Final = int(ExitCode.CONFIGURATION)


def seconds(text: str) -> float:
    """Read what ``--wait`` takes. The name stands in what argparse says of other texts."""
    if not (found := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"it takes a number of at least 0; got {text!r}")
    return found


def port(text: str) -> int:
    """Read what ``--health-port`` takes. The name stands in what argparse says of other texts."""
    if not 0 <= (found := int(text)) <= 65_535:
        raise argparse.ArgumentTypeError(f"it takes a number from 0 to 65535; got {text!r}")
    return found


class Command(BaseCommand):
    """Run consumers until SIGINT or SIGTERM, then drain. The exit codes are those of ``postroom run``."""

    help = "Run consumers of SQS until SIGINT or SIGTERM; then drain. A second signal cancels what runs."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the names of consumers, how long to wait for a queue, and where to serve health."""
        parser.add_argument(
            "consumers",
            nargs="*",
            metavar="MODULE:CONSUMER",
            help="such as shop.tasks:orders; without any, those of the setting POSTROOM_CONSUMERS",
        )
        parser.add_argument(
            "--wait",
            type=seconds,
            metavar="SECONDS",
            help="how long to wait for a queue that cannot be reached yet; else until it answers",
        )
        parser.add_argument(
            "--health-port",
            type=port,
            default=os.environ.get("POSTROOM_HEALTH_PORT"),
            metavar="PORT",
            help="serve /livez, /readyz and /healthz there (POSTROOM_HEALTH_PORT); else nowhere. 0: any free port",
        )
        parser.add_argument(
            "--health-host",
            default=os.environ.get("POSTROOM_HEALTH_HOST"),
            metavar="ADDRESS",
            help="the address to serve them at (POSTROOM_HEALTH_HOST); else all of this machine",
        )

    def handle(self, *_: Any, **options: Any) -> None:
        """Run until a signal."""
        named: str | Sequence[str] = options["consumers"] or getattr(settings, "POSTROOM_CONSUMERS", None) or ()
        # As a text it is what the environment variable of that name is: separated by spaces.
        names = named.split() if isinstance(named, str) else named
        if not names:
            text = "name consumers, such as shop.tasks:orders, here or in the setting POSTROOM_CONSUMERS"
            raise CommandError(text, returncode=_TO_CHANGE)
        try:
            loaded = [consumer for name in names for consumer in load_consumers(name)]
            check_each_once(loaded)
        except WrongName as error:
            raise CommandError(str(error), returncode=_TO_CHANGE) from error
        if not (logging.getLogger().handlers or logging.getLogger("postroom").handlers):  # LOGGING says nothing of it
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        health = None
        if options["health_port"] is not None:
            health = HealthServer(*loaded, port=options["health_port"], host=options["health_host"] or None)
        sys.exit(int(run_to_exit(loaded, wait=options["wait"], beside=health)))

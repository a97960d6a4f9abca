"""``python manage.py run_postroom``: consumers as the main job of a process, with Django set up."""

import logging
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from postroom.consumer.loading import WrongName, load_consumers
from postroom.consumer.runner import run_to_exit


class Command(BaseCommand):
    """Run consumers until SIGINT or SIGTERM, then drain. The exit codes are those of ``postroom run``."""

    help = "Run consumers of SQS until SIGINT or SIGTERM; then drain. A second signal cancels what runs."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the names of consumers, and how long to wait for a queue."""
        parser.add_argument(
            "consumers",
            nargs="*",
            metavar="MODULE:CONSUMER",
            help="such as shop.tasks:orders; without any, those of the setting POSTROOM_CONSUMERS",
        )
        parser.add_argument(
            "--wait",
            type=float,
            metavar="SECONDS",
            help="how long to wait for a queue that cannot be reached yet; else until it answers",
        )

    def handle(self, *_: Any, **options: Any) -> None:
        """Run until a signal."""
        names: list[str] = options["consumers"] or list(getattr(settings, "POSTROOM_CONSUMERS", ()))
        if not names:
            raise CommandError("name consumers, such as shop.tasks:orders, here or in the setting POSTROOM_CONSUMERS")
        try:
            loaded = [consumer for name in names for consumer in load_consumers(name)]
        except WrongName as error:
            raise CommandError(str(error)) from error
        if not (logging.getLogger().handlers or logging.getLogger("postroom").handlers):  # LOGGING says nothing of it
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        sys.exit(int(run_to_exit(loaded, wait=options["wait"])))

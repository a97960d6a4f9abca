"""Run the example: ``postroom run examples.multi_tenant_datasource.main:orders``, or this module itself."""

import logging

from postroom import run

from .order_module import create_consumer
from .tenant_datasource_manager import TenantDataSourceManager

orders = create_consumer(TenantDataSourceManager.from_environment())


def main() -> None:
    """Consume until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)-5s %(message)s")
    logging.getLogger("postroom.pool").setLevel(logging.DEBUG)  # shows each hit of the pool
    run(orders)


if __name__ == "__main__":
    main()

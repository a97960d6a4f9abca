"""The service as a process: ``postroom run examples.multi_tenant_datasource.main:orders``.

Configured by the environment:

* ``ORDERS_QUEUE``: the queue; ``tenant-orders`` by default. Endpoint, region and credentials are AWS's own variables.
* ``ORDERS_DATABASES``: a directory with a SQLite file per tenant, or the DSN of a PostgreSQL server that has a database
  per tenant, without the name of the database: ``postgresql://user:password@host:5432``.
"""

import os
from pathlib import Path

from postroom import run

from .order_module import create_orders
from .tenant_context import TenantContext
from .tenant_datasource_manager import Locations, TenantDataSourceManager, database_name

TENANTS = (TenantContext("tenant-a", "us-east-1"), TenantContext("tenant-b", "eu-west-1"))
"""The tenants that exist. A real service asks its configuration service."""


def locations(databases: str) -> Locations:
    """Return where the database of each tenant is."""
    if "://" in databases:
        return {tenant: f"{databases.rstrip('/')}/{database_name(tenant)}" for tenant in TENANTS}
    directory = Path(databases)
    directory.mkdir(parents=True, exist_ok=True)
    return {tenant: directory / f"{database_name(tenant)}.sqlite" for tenant in TENANTS}


manager = TenantDataSourceManager(locations(os.environ.get("ORDERS_DATABASES", "databases")))
orders = create_orders(manager, queue=os.environ.get("ORDERS_QUEUE", "tenant-orders"))

if __name__ == "__main__":
    run(orders)

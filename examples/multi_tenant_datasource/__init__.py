"""Multi-tenant datasource selection: each tenant's orders reach that tenant's own database."""

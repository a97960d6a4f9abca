"""Multi-tenant datasource selection: each tenant's messages reach that tenant's own database."""

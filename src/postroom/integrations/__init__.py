"""Consumers inside of web frameworks. Each module is imported by its name and needs its framework installed.

=================================  =============================================================
``postroom.integrations.starlette``  ``lifespan``, for Starlette and FastAPI
``postroom.integrations.fastapi``    ``leased``, for ``Depends``; and ``lifespan``
``postroom.integrations.litestar``   ``lifespan`` and ``leased``, for ``Provide``
``postroom.integrations.django``     an app with the command ``run_postroom``; tenants' databases
=================================  =============================================================
"""

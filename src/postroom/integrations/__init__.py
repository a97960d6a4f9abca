"""What connects postroom with other libraries. Each module is imported by its name and needs its library installed.

======================================  =============================================================
``postroom.integrations.asgi``          health, mounted in any ASGI application
``postroom.integrations.starlette``     ``lifespan``, for Starlette and FastAPI
``postroom.integrations.fastapi``       ``leased``, for ``Depends``; and ``lifespan``
``postroom.integrations.litestar``      ``lifespan`` and ``leased``, for ``Provide``
``postroom.integrations.django``        an app with the command ``run_postroom``; tenants' databases
======================================  =============================================================
"""

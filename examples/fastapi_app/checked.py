"""The consumer as ``postroom check examples.fastapi_app.checked:orders`` looks at it."""

from examples.fastapi_app.main import Settings, make_consumer

from postroom import AwsClient
from postroom.integrations.otel import Telemetry

orders = make_consumer(Settings.from_environment(), AwsClient(), Telemetry())

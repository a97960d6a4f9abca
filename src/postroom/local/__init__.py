"""A local SQS: the behaviour as a state machine over a clock, in this process or over HTTP.

``Broker`` is the state machine, ``LocalBroker`` puts it into an event loop, ``LocalServer`` before an HTTP client.
It is for development and tests; production is Amazon SQS.
"""

from postroom.local.broker import Broker
from postroom.local.errors import BrokerError
from postroom.local.fair import FairPolicy
from postroom.local.inprocess import LocalBroker
from postroom.local.options import BrokerOptions, Scope
from postroom.local.queue import LocalQueue
from postroom.local.server import LocalServer

__all__ = ["Broker", "BrokerError", "BrokerOptions", "FairPolicy", "LocalBroker", "LocalQueue", "LocalServer", "Scope"]

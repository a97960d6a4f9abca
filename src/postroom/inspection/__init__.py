"""Look at a consumer before it ships: what it is made of, its queue, its permissions, its databases, its stop.

``postroom check`` prints what is found here.
"""

from postroom.inspection.findings import Deployment, Finding, Level, Report
from postroom.inspection.inspect import inspect_consumer
from postroom.inspection.permissions import least_policy

__all__ = ["Deployment", "Finding", "Level", "Report", "inspect_consumer", "least_policy"]

"""Scheduling: who runs next. Pure and synchronous."""

from postroom.scheduling.lanes import Scheduler
from postroom.scheduling.limits import PerTenant
from postroom.scheduling.tickets import Bound, Bounds, LaneStatistics, Pace, SchedulerStatistics, State, Ticket

__all__ = [
    "Bound",
    "Bounds",
    "LaneStatistics",
    "Pace",
    "PerTenant",
    "Scheduler",
    "SchedulerStatistics",
    "State",
    "Ticket",
]

"""Scheduling: who runs next. Pure and synchronous."""

from postroom.scheduling.lanes import Scheduler, SchedulerStatistics, State, Ticket

__all__ = ["Scheduler", "SchedulerStatistics", "State", "Ticket"]

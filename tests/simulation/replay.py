"""Run one seed again and print its history: ``make replay SEED=407``, ``make replay KIND=core SEED=7``."""

import sys

from simulation.soak import runner


def main(arguments: list[str]) -> int:
    """Replay a seed; 0 if nothing was broken."""
    kind, seed = arguments[0], int(arguments[1])
    if kind in {"consumer", "queues", "further"}:
        from simulation.consumer.further import run_further_schedule
        from simulation.consumer.many_queues import run_many_queues_schedule
        from simulation.consumer.schedule import run_consumer_schedule

        runs = {"consumer": run_consumer_schedule, "queues": run_many_queues_schedule, "further": run_further_schedule}
        outcome = runs[kind](seed)
        print(outcome.history.text())
        print(outcome.plan)
        print("hardships:", ", ".join(outcome.plan.hardships) or "none")
        broken = outcome.violations
    elif kind == "core":
        from simulation.core.schedules import run_core_schedule

        told = run_core_schedule(seed, history=True)
        print("\n".join(told.history))
        print(told.plan)
        broken = () if told.violation is None else (told.violation,)
    elif kind == "fleet":
        from simulation.fleet.schedules import run_fleet_schedule

        seen = run_fleet_schedule(seed, history=True)
        print("\n".join(seen.history))
        print(seen.plan)
        broken = () if seen.violation is None else (seen.violation,)
    else:
        run = runner(kind)
        broken = () if run is None else run(seed)
    print("\n".join(broken) or "nothing was broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

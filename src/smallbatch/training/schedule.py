"""The learning rate's factor against progress, counted in updates (paper, section 5)."""

import math
from collections.abc import Callable
from functools import partial

from smallbatch.config import Schedule
from smallbatch.targets import check_call, locate


def make_schedule(schedule: Schedule, total: int) -> Callable[[int], float]:
    """Factor on the learning rate by update, from 0, of a run of `total`; `schedule._target_` is called as `factor` is.

    Raises ConfigError if that takes no (schedule, update, total).
    """
    if not schedule._target_:
        return partial(factor, schedule, total=total)
    target = locate(schedule._target_, "schedule")
    check_call(target, {"total": total}, "schedule", schedule, 0)
    return partial(target, schedule, total=total)


def factor(schedule: Schedule, update: int, total: int) -> float:
    """Factor on the learning rate for update `update` (from 0) of `total`.

    steps: ×drop_factor from each share in `drops` on; cosine: to 0; constant: 1. With warm-up the
    factor rises linearly from `warmup_start` to 1 over the first share `warmup` (figs 10, 11), then
    the usual schedule goes on where it would have been without.

    >>> [factor(Schedule(), update, 100) for update in (0, 50)]
    [1, 0.1]
    >>> [factor(Schedule(warmup=0.1, warmup_start=0.5), update, 100) for update in (0, 5, 10)]
    [0.5, 0.75, 1]
    """
    done = min(update / total, 1)
    if done < schedule.warmup:
        return schedule.warmup_start + (1 - schedule.warmup_start) * done / schedule.warmup
    if schedule.kind == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if schedule.kind == "steps":
        return math.prod(schedule.drop_factor for drop in schedule.drops if done >= drop)
    return 1.0

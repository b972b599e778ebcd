"""Learning rates: a pure function of the step, and for "plateau" of the validation losses so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from training.config import Experiment, ScheduleConfig

MIN_IMPROVEMENT = 1e-4
"""A validation loss that falls by less counts as standing still."""


def learning_rate_at(
    experiment: Experiment, step: int, steps_per_epoch: int, validation_losses: Sequence[float] = ()
) -> float:
    """The learning rate of the head at an optimiser step, counted from 0 over the whole run.

    * `one-cycle` (Smith and Topin, 2018): half a cosine up from a 25th of `max_lr` in `warmup_fraction` of the steps,
      then half a cosine down to `min_lr`.
    * `warmup-plateau-cosine`: a straight line up from 0, `plateau_fraction` of the steps at `max_lr`, then half a
      cosine down to `min_lr`.
    * `step`: times `gamma` every `step_size_epochs`.
    * `plateau`: times `gamma` whenever the loss has not fallen for more than `patience_epochs` epochs.

    The last two never go below `min_lr`. validation_losses: one an epoch that is behind.
    """
    schedule, peak = experiment.schedule, experiment.optim.max_lr
    n_steps = steps_per_epoch * experiment.optim.epochs
    warm = schedule.warmup_fraction * n_steps
    if schedule.kind == "one-cycle":
        if step < warm:
            return _half_cosine(peak / 25, peak, step / warm)
        return _half_cosine(peak, schedule.min_lr, (step - warm) / max(1.0, n_steps - warm))
    if schedule.kind == "warmup-plateau-cosine":
        if step < warm:
            return peak * (step + 1) / math.ceil(warm)
        fall = warm + schedule.plateau_fraction * n_steps
        return _half_cosine(peak, schedule.min_lr, max(0.0, step - fall) / max(1.0, n_steps - fall))
    if schedule.kind == "step":
        n_drops = step // steps_per_epoch // schedule.step_size_epochs
    elif schedule.kind == "plateau":
        n_drops = _n_plateaus(validation_losses, schedule)
    else:
        n_drops = 0
    return max(peak * schedule.gamma**n_drops, min(schedule.min_lr, peak))


def epochs_without_improvement(validation_losses: Sequence[float]) -> int:
    """How many epochs have passed since the validation loss last fell to a new low."""
    best, since = math.inf, 0
    for loss in validation_losses:
        best, since = (loss, 0) if loss < best - MIN_IMPROVEMENT else (best, since + 1)
    return since


def stops_early(experiment: Experiment, validation_losses: Sequence[float]) -> bool:
    """Whether the run ends here, see `ScheduleConfig.early_stop_epochs`."""
    patience = experiment.schedule.early_stop_epochs
    return patience > 0 and epochs_without_improvement(validation_losses) >= patience


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _n_plateaus(losses: Sequence[float], schedule: ScheduleConfig) -> int:
    """How often the loss has stood still for longer than the patience; the count starts anew after each drop."""
    best, waited, n_drops = math.inf, 0, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best - MIN_IMPROVEMENT else (best, waited + 1)
        if waited > schedule.patience_epochs:
            n_drops, waited = n_drops + 1, 0
    return n_drops

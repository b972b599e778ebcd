"""How calls are timed and how many timings become one number."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def turn_ms(call: Callable[[], object], least_s: float) -> list[float]:
    """Milliseconds of each call, one after the other, until `least_s` seconds have passed; one call at least."""
    times: list[float] = []
    begin = time.perf_counter()
    while not times or time.perf_counter() - begin < least_s:
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1000)
    return times


def rounds_for(round_s: float, budget_s: float, least: int, most: int) -> int:
    """How many rounds of `round_s` seconds fit the budget, within limits."""
    return max(least, min(most, int(budget_s / round_s)))


def middle_mean(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of each part over the calls between the quartiles of the total: robust, and yet they add up to the total.

    parts: one dict a call, with the same keys.
    """
    by_total = sorted(parts, key=lambda call: sum(call.values()))
    quarter = len(by_total) // 4
    middle = by_total[quarter : len(by_total) - quarter]
    return {name: statistics.fmean(call[name] for call in middle) for name in middle[0]}

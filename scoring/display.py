"""What a run shows of itself while it goes on: a live bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from rich.live import Live

    from scoring.tally import Tally

ProgressKind = Literal["auto", "bar", "plain", "none"]
RATE_WINDOW_S = 10.0
PLAIN_INTERVAL_S = 10.0
BAR_INTERVAL_S = 0.2


class Meter:
    """Adds up what the engine tells. `n_scored` and `rate` leave out what was taken over from an earlier run.

    clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.n_listed = self.n_standing = self.n_scored = self.n_faces = self.n_failed = 0
        self.is_listing = True
        self.started_s = self._scoring_since_s = clock()
        self._scored_at: deque[tuple[float, int]] = deque()

    def listed(self, n_entries: int, *, done: bool) -> None:
        """So many inputs were found so far, or in all."""
        self.n_listed = n_entries
        if done:
            self.is_listing = False
            self._scoring_since_s = self._clock()

    def standing(self, tally: Tally) -> None:
        """These were taken over from an earlier run."""
        self.n_standing += tally.n_inputs
        self._count(tally)

    def scored(self, tally: Tally) -> None:
        """These have been scored."""
        self.n_scored += tally.n_inputs
        self._count(tally)
        now_s = self._clock()
        self._scored_at.append((now_s, self.n_scored))
        while len(self._scored_at) > 2 and self._scored_at[1][0] <= now_s - RATE_WINDOW_S:
            self._scored_at.popleft()

    def _count(self, tally: Tally) -> None:
        self.n_faces += tally.n_faces
        self.n_failed += tally.n_failed

    @property
    def n_done(self) -> int:
        """Inputs that are scored or were taken over."""
        return self.n_standing + self.n_scored

    @property
    def fraction_done(self) -> float:
        """0..1; 0 while the inputs are listed."""
        return 0.0 if self.is_listing else self.n_done / max(1, self.n_listed)

    @property
    def rate(self) -> float | None:
        """Inputs scored a second lately, or None before that can be known.

        Counts arrive in bursts, so a gap as long as the window says nothing yet; after it the rate falls.
        """
        if len(self._scored_at) < 2:
            return None
        (first_s, n_first), (last_s, n_last) = self._scored_at[0], self._scored_at[-1]
        until_s = max(last_s, self._clock() - RATE_WINDOW_S)
        return (n_last - n_first) / (until_s - first_s) if until_s > first_s else None

    @property
    def left_s(self) -> float | None:
        """Seconds until all are scored, at the rate of lately."""
        return (self.n_listed - self.n_done) / rate if not self.is_listing and (rate := self.rate) else None

    @property
    def taken_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self.started_s

    @property
    def overall_rate(self) -> float | None:
        """Inputs scored a second since the end of the listing; the loading of the models is in it."""
        taken_s = self._clock() - self._scoring_since_s
        return self.n_scored / taken_s if self.n_scored and taken_s > 0 else None


class Display:
    """A run's progress, shown on stderr; this one shows nothing. A context manager around the run.

    on_tick: called with every `tick`; it may raise StoppedError. What cannot be written (a terminal that is gone, a
    closed pipe) is left out: the run is worth more than the sight of it.
    """

    def __init__(self, on_tick: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.meter = Meter(clock)
        self._on_tick, self._clock = on_tick, clock

    def announce(self, line: str) -> None:
        """Say what is about to be done."""

    def listed(self, n_entries: int, *, done: bool) -> None:
        """See `scoring.engine.Progress`."""
        self.meter.listed(n_entries, done=done)
        self._show(due=done)

    def standing(self, tally: Tally) -> None:
        """See `scoring.engine.Progress`."""
        self.meter.standing(tally)
        self._show()

    def scored(self, tally: Tally) -> None:
        """See `scoring.engine.Progress`."""
        self.meter.scored(tally)
        self._show()

    def tick(self) -> None:
        """See `scoring.engine.Progress`."""
        self._on_tick()
        self._show()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def _show(self, *, due: bool = False) -> None:
        pass


class PlainDisplay(Display):
    """Lines without control characters, one every ten seconds or so."""

    _shown_s: float | None = None
    _writable = True

    def announce(self, line: str) -> None:
        """See `Display`."""
        self._write(line)

    def _show(self, *, due: bool = False) -> None:
        now_s = self._clock()
        since_s = self.meter.started_s if self._shown_s is None else self._shown_s
        if due or now_s - since_s >= PLAIN_INTERVAL_S:
            self._shown_s = now_s
            self._write(progress_line(self.meter))

    def _write(self, line: str) -> None:
        if self._writable:
            try:
                print(line, file=sys.stderr, flush=True)
            except OSError:
                self._writable = False


class BarDisplay(Display):
    """A bar and a line of counts, redrawn in place by the calls themselves, without a thread."""

    _live: Live | None = None
    _shown_s = 0.0

    def announce(self, line: str) -> None:
        """See `Display`."""
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(line), soft_wrap=True)

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.live import Live

        class TerminalConsole(Console):
            def on_broken_pipe(self) -> None:
                self.quiet = True  # rich would end the process

        # Whoever asked for a bar gets one, on a terminal or not.
        console = TerminalConsole(stderr=True, force_terminal=True, highlight=False)
        try:
            live = Live(console=console, auto_refresh=False)
            live.start()
            self._live = live
        except OSError:
            pass
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._show(due=True)
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None

    def _show(self, *, due: bool = False) -> None:
        now_s = self._clock()
        if self._live is None or (not due and now_s - self._shown_s < BAR_INTERVAL_S):
            return
        self._shown_s = now_s
        try:
            self._live.update(_bar(self.meter), refresh=True)
        except OSError:
            self._live = None


def make_display(kind: ProgressKind, on_tick: Callable[[], None]) -> Display:
    """The display of that kind; `auto` is the bar on a terminal that can move its cursor, else plain lines."""
    if kind == "auto":
        kind = "bar" if _is_terminal() else "plain"
    displays: dict[str, type[Display]] = {"bar": BarDisplay, "plain": PlainDisplay, "none": Display}
    return displays[kind](on_tick)


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def progress_line(meter: Meter) -> str:
    """One line of where a run is."""
    if meter.is_listing:
        return f"listing: {count(meter.n_listed, 'file')} found"
    share = f"{meter.fraction_done:.1%}".replace("%", " %")
    return f"{meter.n_done:,} of {count(meter.n_listed, 'file')} ({share}), {_details(meter, ', ')}"


def _details(meter: Meter, separator: str) -> str:
    details = [count(meter.n_faces, "face"), count(meter.n_failed, "error")]
    if meter.n_standing:
        details.append(f"{meter.n_standing:,} taken over")
    if meter.n_done < meter.n_listed:
        if (rate := meter.rate) is not None:
            details.append(f"{decimals(rate)} files/s")
        if (left_s := meter.left_s) is not None:
            details.append(f"{duration(left_s)} left")
    return separator.join(details)


def _bar(meter: Meter) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    if meter.is_listing:
        return Text(progress_line(meter), no_wrap=True, overflow="ellipsis")
    line = Table.grid(padding=(0, 1))
    line.add_row(
        ProgressBar(max(1, meter.n_listed), meter.n_done, width=30, complete_style="cyan", finished_style="green"),
        Text(f"{int(meter.fraction_done * 100)} %", style="bold"),
        Text(f"{meter.n_done:,} of {count(meter.n_listed, 'file')}"),
    )
    return Group(line, Text(_details(meter, " · "), no_wrap=True, overflow="ellipsis"))


def printable(text: str) -> str:
    """The text with escapes for what would move the cursor, break the line or fit no encoding: names hold anything."""
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def count(number: int, noun: str) -> str:
    """`1 face`, `2,000 faces`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def decimals(number: float) -> str:
    """Three figures or so: 0.85, 45.3, 1,234."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def duration(seconds: float) -> str:
    """`45 s`, `2 min 50 s`, `3 h 5 min`, `2 d 3 h`."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, rest_min = divmod(minutes, 60)
    days, rest_h = divmod(hours, 24)
    if days:
        return f"{days} d {rest_h} h"
    if hours:
        return f"{hours} h {rest_min} min"
    return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"

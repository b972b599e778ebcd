"""The table at the end of a run: what became of the inputs, the faces by emotion, the failures by code."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from scoring.display import Meter, count, decimals, duration

if TYPE_CHECKING:
    from scoring.config import RunConfig
    from scoring.run import RunResult

_WIDE = 1000
"""Columns of what is no terminal: nothing is wrapped or cut there."""


def summary_text(result: RunResult, config: RunConfig, meter: Meter, output: str, width: int | None) -> str:
    """The table and what is to say below it, each line ended.

    output: where the run wrote, as shown to people. width: columns of the terminal, for which it is coloured (unless
    NO_COLOR is set), or None for plain text.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    held = io.StringIO()
    console = Console(
        file=held, width=width or _WIDE, force_terminal=width is not None, highlight=False, legacy_windows=False
    )
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)

    def add(name: str, number: int, of: int | None = None, style: str = "") -> None:
        share = "" if not of else f"{number / of:.1%}".replace("%", " %")
        table.add_row(Text(name), Text(f"{number:,}"), Text(share), style=style)

    tally = result.tally
    add("inputs", tally.n_inputs, style="bold")
    add("  with faces", tally.n_inputs - tally.n_faceless - tally.n_failed, tally.n_inputs)
    add("  without a face", tally.n_faceless, tally.n_inputs)
    add("  failed", tally.n_failed, tally.n_inputs, "red" if tally.n_failed else "")
    if meter.n_standing:
        add("  of these taken over from an earlier run", meter.n_standing, tally.n_inputs)
    if result.n_repeated:
        add("  named more than once, scored once", result.n_repeated)
    table.add_section()
    add("faces", tally.n_faces, style="bold")
    for label in sorted(config.labels, key=lambda label: -tally.emotions[label]):
        add(f"  {label}", tally.emotions[label], tally.n_faces)
    if tally.errors:
        table.add_section()
        add("failures", tally.n_failed, style="bold red")
        for code, number in tally.errors.most_common():
            add(f"  {code}", number, tally.n_failed)
    console.print(table)

    rate = meter.overall_rate
    speed = "nothing was left to score" if rate is None else f"{decimals(rate)} files scored a second"
    lines = [f"{duration(meter.taken_s)}, {speed}", f"{count(result.n_parts, 'part')} in {_parts_of(output)}"]
    if not result.complete:
        lines.append("this shard is done; the output is complete when every other one is, too")
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    return held.getvalue()


def _parts_of(output: str) -> str:
    return output.rstrip("/" + os.sep) + "/parts"

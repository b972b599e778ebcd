import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from scoring.display import (
    BarDisplay,
    Display,
    Meter,
    PlainDisplay,
    count,
    decimals,
    duration,
    make_display,
    printable,
    progress_line,
)
from scoring.errors import StoppedError
from scoring.tally import Tally
from tests.scoring.terminal import on_terminal

REPOSITORY = Path(__file__).parents[2]


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tally(n_inputs: int, *, n_faces: int = 0, n_failed: int = 0) -> Tally:
    return Tally(
        n_inputs, 0, n_failed, n_faces, Counter(happy=n_faces), Counter(too_large=n_failed) if n_failed else Counter()
    )


def nothing() -> None:
    pass


def test_a_meter_counts_what_is_scored_and_what_stands(clock: Clock) -> None:
    meter = Meter(clock)
    meter.listed(40, done=False)
    meter.listed(100, done=True)
    meter.standing(tally(30, n_faces=3, n_failed=2))
    meter.scored(tally(20, n_faces=5, n_failed=1))

    assert (meter.n_done, meter.n_scored, meter.n_standing) == (50, 20, 30)
    assert (meter.n_faces, meter.n_failed) == (8, 3)
    assert meter.fraction_done == 0.5


def test_nothing_is_done_of_an_unfinished_listing(clock: Clock) -> None:
    meter = Meter(clock)
    meter.listed(40, done=False)

    assert meter.fraction_done == 0
    assert meter.left_s is None


def test_the_rate_and_the_time_left_are_those_of_the_last_ten_seconds(clock: Clock) -> None:
    meter = Meter(clock)
    meter.listed(1_000, done=True)
    for per_second in [1] * 30 + [8] * 12:
        clock.now_s += 1
        meter.scored(tally(per_second))

    assert meter.rate == pytest.approx(8)
    assert meter.left_s == pytest.approx((1_000 - 30 - 96) / 8)


def test_what_was_taken_over_makes_nothing_faster_but_shortens_the_time_left(clock: Clock) -> None:
    meter = Meter(clock)
    meter.listed(1_000, done=True)
    meter.standing(tally(800))
    for _ in range(5):
        clock.now_s += 1
        meter.standing(tally(20))
        meter.scored(tally(4))

    assert meter.rate == pytest.approx(4)
    assert meter.left_s == pytest.approx((1_000 - 900 - 20) / 4)
    assert meter.overall_rate == pytest.approx(20 / 5)


def test_the_rate_is_unknown_until_it_can_be_known(clock: Clock) -> None:
    meter = Meter(clock)
    meter.listed(10, done=True)
    assert (meter.rate, meter.left_s, meter.overall_rate) == (None, None, None)
    meter.scored(tally(1))
    assert meter.rate is None
    meter.scored(tally(1))
    assert meter.rate is None, "no time has passed"


def test_counts_that_come_in_bursts_longer_apart_than_the_window_still_make_a_rate(clock: Clock) -> None:
    meter = Meter(clock)
    meter.listed(10_000, done=True)
    for _ in range(5):
        clock.now_s += 20
        meter.scored(tally(500))
        assert meter.rate is None or meter.rate == pytest.approx(25)
    clock.now_s += 9
    assert meter.rate == pytest.approx(25), "the next burst is not due"


def test_the_rate_falls_when_nothing_comes_any_more(clock: Clock) -> None:
    meter = Meter(clock)
    meter.listed(10_000, done=True)
    for _ in range(20):
        clock.now_s += 1
        meter.scored(tally(10))
    rates = []
    for _ in range(5):
        clock.now_s += 60
        rate = meter.rate
        assert rate is not None
        rates.append(rate)

    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1


def test_a_meter_keeps_no_more_counts_than_its_window_has(clock: Clock) -> None:
    meter = Meter(clock)
    meter.listed(100_000, done=True)
    for _ in range(5_000):
        clock.now_s += 0.1
        meter.scored(tally(1))

    assert len(meter._scored_at) < 110


def test_the_lines_say_where_the_run_is(clock: Clock) -> None:
    meter = Meter(clock)
    meter.listed(1, done=False)
    assert progress_line(meter) == "listing: 1 file found"
    meter.listed(2_000, done=True)
    assert progress_line(meter) == "0 of 2,000 files (0.0 %), 0 faces, 0 errors"
    meter.standing(tally(500, n_faces=1, n_failed=1))
    assert progress_line(meter) == "500 of 2,000 files (25.0 %), 1 face, 1 error, 500 taken over"
    for _ in range(11):
        clock.now_s += 1
        meter.scored(tally(10, n_faces=2))
    assert progress_line(meter) == (
        "610 of 2,000 files (30.5 %), 23 faces, 1 error, 500 taken over, 10.0 files/s, 2 min 19 s left"
    )
    meter.scored(tally(1_390))
    assert progress_line(meter) == "2,000 of 2,000 files (100.0 %), 23 faces, 1 error, 500 taken over"


def test_plain_lines_come_every_ten_seconds_and_when_the_listing_is_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with PlainDisplay(nothing, clock) as display:
        display.announce("scoring photos")
        for number in range(1, 26):
            clock.now_s += 1
            display.listed(number * 100, done=False)
        display.listed(2_500, done=True)
        for _ in range(31):
            clock.now_s += 1
            display.scored(tally(1))
            display.tick()
    printed = capsys.readouterr()

    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[:4] == [
        "scoring photos",
        "listing: 1,000 files found",
        "listing: 2,000 files found",
        "0 of 2,500 files (0.0 %), 0 faces, 0 errors",
    ]
    assert [line.split(" of ")[0] for line in lines[4:]] == ["10", "20", "30"]
    assert printed.err.replace("\n", "").isprintable()


@pytest.mark.parametrize("display", [Display, PlainDisplay, BarDisplay])
def test_a_tick_passes_on_that_somebody_wants_the_run_to_stop(display: type[Display]) -> None:
    def stop() -> None:
        raise StoppedError("stopped")

    with pytest.raises(StoppedError), display(stop) as shown:
        shown.tick()


def test_no_progress_is_no_progress(capfd: pytest.CaptureFixture[str]) -> None:
    with make_display("none", nothing) as display:
        display.announce("scoring photos")
        display.listed(3, done=True)
        display.scored(tally(3))
        display.tick()

    assert display.meter.n_scored == 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["plain", "bar"])
def test_a_run_outlives_what_it_is_shown_on(kind: str) -> None:
    code = (
        "import os\n"
        "from scoring.display import make_display\n"
        "from scoring.tally import Tally\n"
        f"with make_display({kind!r}, lambda: None) as display:\n"
        "    display.announce('scoring photos')\n"
        "    for n in range(3):\n"
        "        display._shown_s = -1000.0\n"
        "        display.listed(n, done=True)\n"
        "        display.tick()\n"
        "    display.scored(Tally(3))\n"
        "print(display.meter.n_scored, flush=True)\n"
        "os._exit(0)\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=writing, timeout=60
        )
    finally:
        os.close(writing)

    assert (done.returncode, done.stdout) == (0, b"3\n")


SHOWN = """
import time
from collections import Counter
from scoring.display import make_display
from scoring.tally import Tally
with make_display("auto", lambda: None) as display:
    display.announce("scoring photos")
    display.listed(200, done=False)
    display.listed(2000, done=True)
    display.standing(Tally(1000, 0, 1, 700, Counter(), Counter()))
    for _ in range(3):
        time.sleep(0.25)
        display.scored(Tally(100, 0, 0, 50, Counter(), Counter()))
        display.tick()
"""


def shown_on_terminal(**environment: str) -> str:
    ended = on_terminal([sys.executable, "-c", SHOWN], **environment)
    assert ended.code == 0, ended.written
    return ended.written


def test_a_terminal_gets_a_bar_that_is_drawn_in_place() -> None:
    written = shown_on_terminal()

    assert "scoring photos" in written
    assert "━" in written
    assert "65 %" in written
    assert "1,300 of 2,000 files" in written
    assert re.search(r"850 faces · 1 error · 1,000 taken over · [\d,.]+ files/s · \d+ s left", written)
    assert written.count("\x1b[2K") >= 3, "drawn again in place"
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is back"


def test_no_colour_is_used_when_nobody_wants_it() -> None:
    colour = re.compile(r"\x1b\[[\d;]*3[0-9][\d;]*m")

    assert colour.search(shown_on_terminal())
    assert not colour.search(shown_on_terminal(NO_COLOR="1"))


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    written = shown_on_terminal(TERM="dumb")

    assert "\x1b" not in written
    assert "0 of 2,000 files" in written


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photos/a b.jpg", "photos/a b.jpg"),
        ("señor 写真", "señor 写真"),
        ("two\nlines\x1b[31m\r", "two\\nlines\\x1b[31m\\r"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
    ],
)
def test_names_are_shown_so_that_they_can_do_no_harm(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_numbers_are_written_for_people() -> None:
    assert [count(0, "face"), count(1, "face"), count(12_345, "face")] == ["0 faces", "1 face", "12,345 faces"]
    assert [decimals(0.853), decimals(45.32), decimals(1234.5)] == ["0.85", "45.3", "1,234"]
    assert [duration(0.2), duration(170), duration(11_100), duration(183_600)] == [
        "0 s",
        "2 min 50 s",
        "3 h 5 min",
        "2 d 3 h",
    ]

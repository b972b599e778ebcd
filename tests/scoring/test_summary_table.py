import os
import re
from collections import Counter
from dataclasses import replace

import pytest

from scoring.config import RunConfig, resolve_config
from scoring.display import Meter
from scoring.run import RunResult
from scoring.summary_table import summary_text
from scoring.tally import Tally


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def config() -> RunConfig:
    return resolve_config("fake")


@pytest.fixture
def meter() -> Meter:
    clock = Clock()
    meter = Meter(clock)
    clock.now_s = 20
    meter.listed(2_000, done=True)
    meter.standing(Tally(500))
    meter.scored(Tally(1_500))
    clock.now_s = 170
    return meter


RESULT = RunResult(
    Tally(
        2_000,
        300,
        100,
        2_400,
        Counter(happy=1_200, angry=1_200),
        Counter(corrupt_image=75, too_large=25),
    ),
    n_parts=4,
    n_standing_parts=1,
    n_repeated=2,
    complete=True,
    summary={},
)


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of each line by the first."""
    lines = [re.split(r" {2,}", line.strip()) for line in text.splitlines() if line.strip()]
    return {cells[0]: cells[1:] for cells in lines}


def test_the_table_says_what_became_of_all_inputs(config: RunConfig, meter: Meter) -> None:
    text = summary_text(RESULT, config, meter, "scores", None)
    rows = rows_of(text)

    assert rows["inputs"] == ["2,000"]
    assert rows["with faces"] == ["1,600", "80.0 %"]
    assert rows["without a face"] == ["300", "15.0 %"]
    assert rows["failed"] == ["100", "5.0 %"]
    assert rows["of these taken over from an earlier run"] == ["500", "25.0 %"]
    assert rows["named more than once, scored once"] == ["2"]
    assert rows["faces"] == ["2,400"]
    assert rows["happy"] == rows["angry"] == ["1,200", "50.0 %"]
    assert rows["corrupt_image"] == ["75", "75.0 %"]
    assert rows["too_large"] == ["25", "25.0 %"]
    assert "2 min 50 s, 10.0 files scored a second\n" in text
    assert "4 parts in scores/parts\n" in text
    assert "shard" not in text
    assert "\x1b" not in text


def test_every_emotion_of_the_model_has_its_line_the_most_frequent_first(config: RunConfig, meter: Meter) -> None:
    tally = replace(RESULT.tally, emotions=Counter(sad=3, happy=5), n_faces=8)
    text = summary_text(replace(RESULT, tally=tally), config, meter, "scores", None)

    labels = [name for name in rows_of(text) if name in config.labels]
    assert labels[:2] == ["happy", "sad"]
    assert sorted(labels) == sorted(config.labels)


def test_a_run_without_faces_failures_or_work_is_told_too(config: RunConfig) -> None:
    result = RunResult(Tally(3, 3), 1, 1, 0, True, {})
    rows = rows_of(text := summary_text(result, config, Meter(lambda: 0.0), "scores", None))

    assert rows["faces"] == ["0"]
    assert rows["happy"] == ["0"]
    assert "failures" not in rows
    assert "nothing was left to score" in text
    assert "1 part in" in text


def test_a_shard_says_that_others_are_still_to_come(config: RunConfig, meter: Meter) -> None:
    text = summary_text(replace(RESULT, complete=False), config, meter, "scores", None)

    assert "this shard is done" in text


def test_a_long_output_is_not_broken_where_it_may_be_copied(config: RunConfig, meter: Meter) -> None:
    output = "s3://bucket/" + "folder/" * 60

    assert f"{output.rstrip('/')}/parts\n" in summary_text(RESULT, config, meter, output, None)
    assert f"{output.rstrip('/')}/parts" in summary_text(RESULT, config, meter, output, 80)


def test_a_terminal_gets_colour_unless_nobody_wants_it(
    config: RunConfig, meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m" in summary_text(RESULT, config, meter, "scores", 80)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in summary_text(RESULT, config, meter, "scores", 80)


@pytest.mark.skipif(os.sep != "/", reason="paths of Linux")
def test_the_root_is_an_output_like_any_other(config: RunConfig, meter: Meter) -> None:
    assert "4 parts in /parts" in summary_text(RESULT, config, meter, "/", None)

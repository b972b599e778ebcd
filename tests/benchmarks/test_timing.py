import pytest

from benchmarks.timing import middle_mean, rounds_for, turn_ms


def test_a_turn_makes_one_call_at_least() -> None:
    calls: list[None] = []
    assert len(turn_ms(lambda: calls.append(None), 0)) == len(calls) == 1


def test_a_turn_goes_on_until_its_time_has_passed() -> None:
    assert sum(turn_ms(lambda: None, 0.01)) > 0
    assert len(turn_ms(lambda: None, 0.01)) > 1


@pytest.mark.parametrize(("round_s", "expected"), [(0.001, 25), (1.0, 8), (100.0, 4)])
def test_rounds_fit_the_budget_within_limits(round_s: float, expected: int) -> None:
    assert rounds_for(round_s, 8.0, 4, 25) == expected


def test_the_middle_leaves_out_the_quickest_and_the_slowest_quarter() -> None:
    calls = [{"a": float(total), "b": 1.0} for total in (1000, 3, 0, 5)]
    assert middle_mean(calls) == {"a": 4.0, "b": 1.0}


def test_the_middle_of_one_call_is_that_call() -> None:
    assert middle_mean([{"a": 2.0}]) == {"a": 2.0}

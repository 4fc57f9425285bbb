"""Ratios, goals and the report, on figures that are made up here."""

import json

import pytest
from bench import report
from bench.load import Load
from bench.results import OURS, Curve, Facts, Measure, Results, Series, Spread, take_turns
from bench.targets import GOALS, judge


def load(rate: float, *, p50_ms: float = 2.0, p99_ms: float = 6.0, status: int = 0) -> Load:
    return Load(int(rate), rate, {50: p50_ms, 99: p99_ms}, {"status": status})


def measured(name: str, **sides: list[Load]) -> Measure:
    found = Measure(name, name, "requests/s", {})
    for side, rounds in sides.items():
        found.sides[side.replace("_", " ")] = series = Series()
        for each in rounds:
            series.add(each)
    return found


def verdict(results: Results, what: str) -> tuple[float | None, bool]:
    """Median and outcome of the one goal whose text begins so."""
    (found,) = [each for each in judge(results) if each.goal.what.startswith(what)]
    return (found.found.median if found.found else None, found.reached)


@pytest.fixture
def results() -> Results:
    return Results({"processor": "none"}, {"plan": "test"})


class TestRatios:
    def test_they_are_taken_round_by_round(self) -> None:
        found = measured("put", kvnode=[load(100), load(10), load(30)], etcd=[load(50), load(20), load(10)])
        # 2, 0.5, 3: not the ratio of the medians, which would be 1.5.
        assert found.ratios("etcd") == [2.0, 0.5, 3.0]
        assert Spread.of([2.0, 0.5, 3.0]) == Spread(2.0, 0.5, 3.0)

    def test_a_side_with_errors_gives_none(self) -> None:
        found = measured("put", kvnode=[load(100), load(100)], etcd=[load(50), load(50, status=1)])
        assert found.ratios("etcd") is None
        assert found.ratios("redis") is None

    def test_so_do_errors_of_our_own(self) -> None:
        found = measured("put", kvnode=[load(100, status=1)], etcd=[load(50)])
        assert found.ratios("etcd") is None


class TestTakingTurns:
    def test_every_side_runs_once_a_round_and_nobody_always_goes_first(self) -> None:
        calls: list[tuple[str, int]] = []

        def side(name: str, rate: float) -> object:
            def run(number: int) -> float:
                calls.append((name, number))
                return rate + number

            return run

        found = take_turns("x", "x", "1/s", {"a": side("a", 10), "b": side("b", 20)}, 2, warm=True)
        assert sorted(calls) == [("a", -1), ("a", 0), ("a", 1), ("b", -1), ("b", 0), ("b", 1)]
        assert calls[2:] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
        assert (found.sides["a"].figures, found.sides["b"].figures) == ([10, 11], [20, 21])


class TestGoals:
    def test_what_was_not_measured_is_not_reached(self, results: Results) -> None:
        assert [each.reached for each in judge(results)] == [False] * len(GOALS)
        assert {report.verdict_word(each) for each in judge(results)} == {"not measured"}

    @pytest.mark.parametrize(("rate", "reached"), [(79, False), (80, True), (81, True)])
    def test_a_ratio_at_its_bound(self, results: Results, rate: float, reached: bool) -> None:
        results.add(measured("put", kvnode=[load(rate)], FastAPI=[load(10)]))
        assert verdict(results, "durable PUT / FastAPI") == (rate / 10, reached)

    def test_errors_leave_a_goal_unmeasured(self, results: Results) -> None:
        results.add(measured("put", kvnode=[load(100, status=1)], FastAPI=[load(1)]))
        assert verdict(results, "durable PUT / FastAPI") == (None, False)
        assert verdict(results, "durable PUT: p99") == (None, False)

    @pytest.mark.parametrize(("p99_ms", "reached"), [(7.9, True), (8.0, False)])
    def test_latency_has_to_be_below(self, results: Results, p99_ms: float, reached: bool) -> None:
        results.add(measured("put", kvnode=[load(100, p99_ms=p99_ms)]))
        assert verdict(results, "durable PUT: p99") == (p99_ms / 2, reached)

    def test_the_slowest_clean_start_counts(self, results: Results) -> None:
        results.add(Facts("clean-start", "", "s", {"small": [0.3, 0.3, 9.0], "large": [0.6, 0.6, 0.6]}))
        assert verdict(results, "start after a clean stop") == (0.6, False)

    def test_growth_is_measured_against_the_first_size_and_memory_against_the_second(self, results: Results) -> None:
        points = [
            {"keys": 1, "puts/s": 100, "gets/s": 100, "hot gets/s": 100, "RssAnon MiB": 10},
            {"keys": 2, "puts/s": 50, "gets/s": 60, "hot gets/s": 90, "RssAnon MiB": 100},
            {"keys": 3, "puts/s": 80, "gets/s": 60, "hot gets/s": 70, "RssAnon MiB": 120},
        ]
        results.add(Curve("growth", "", "keys", points))
        assert verdict(results, "growth: put") == (0.8, True)
        assert verdict(results, "growth: read rate of random") == (0.6, False)
        assert verdict(results, "growth: memory") == (1.2, True)

    def test_overload(self, results: Results) -> None:
        points = [
            {"connections": level, "served/s": served, "other errors": errors}
            for level, served, errors in ((64, 1000, 0), (640, 850, 0), (5120, 950, 1))
        ]
        results.add(Curve("overload-put", "", "connections", points))
        assert verdict(results, "overload: puts served at 10 times the") == (0.85, False)
        assert verdict(results, "overload: puts served at 10 times --max") == (None, False)
        results.add(Curve("overload-put-refused", "", "connections", points))
        assert verdict(results, "overload: puts served at 10 times --max") == (0.85, False)
        assert verdict(results, "overload: answers that") == (2.0, False)

    def test_an_audit_of_nothing_proves_nothing(self, results: Results) -> None:
        results.add(Facts("overload-audit", "", "keys", {"acknowledged": [0.0], "of them lost": [0.0]}))
        assert verdict(results, "overload: acknowledged") == (None, False)
        results.add(Facts("overload-audit", "", "keys", {"acknowledged": [5.0], "of them lost": [1.0]}))
        assert verdict(results, "overload: acknowledged") == (1.0, False)


class TestReport:
    def test_everything_is_in_it(self, results: Results) -> None:
        results.add(
            measured("put", kvnode=[load(100), load(90)], FastAPI=[load(10), load(10)], etcd=[load(5, status=2)])
        )
        results.add(Facts("disk", "the disk", "records/s", {"1 a sync": [10_000.0, 12_000.0]}))
        results.add(Curve("sizes", "growing", "keys", [{"keys": 16.0, "puts/s": 20.25}]))
        results.missing["webdis + redis"] = "webdis is not installed"
        text = report.markdown(results, judge(results))
        assert (
            "| durable PUT / FastAPI + plyvel, which does not sync | 9.50 | >= 8.00 | reached | 9.00 to 10.0 |" in text
        )
        assert "| kvnode | 95.0 | 90.0 to 100 |  |  | 2.00 | 6.00 | 3.00 |" in text
        assert "| etcd (invalid: errors: 2 status) | 5.00 |  |  |  |" in text
        assert "- webdis + redis: webdis is not installed" in text
        assert "| 1 a sync | 11,000 | 10,000 to 12,000 |" in text
        assert "| 16 | 20.2 |" in text
        assert f"reached, {len(GOALS) - 2} not measured" in text

    def test_it_can_be_kept_as_json(self, results: Results) -> None:
        results.add(measured("put", kvnode=[load(100)]))
        kept = json.loads(json.dumps(results.as_json()))
        assert kept["measures"]["put"]["sides"][OURS]["figures"] == [100]
        assert kept["measures"]["put"]["sides"][OURS]["latencies"] == [{"50": 2.0, "99": 6.0}]

    @pytest.mark.parametrize(
        ("value", "shown"), [(0, "0"), (0.076, "0.08"), (1.896, "1.90"), (12.34, "12.3"), (99_999.6, "100,000")]
    )
    def test_figures(self, value: float, shown: str) -> None:
        assert report.number(value) == shown

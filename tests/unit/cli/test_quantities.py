"""Numbers as people read them."""

import pytest

from kvnode.cli.quantities import count_text, duration_text, latency_text, rate_text, size_text


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 us"),
        (812_345, "812 us"),
        (1_234_567, "1.23 ms"),
        (9_999_999, "10.0 ms"),
        (99_960_000, "100 ms"),
        (30_000_000_000, "30.0 s"),
        (3_000_000_000_000, "3000 s"),
    ],
)
def test_latencies_have_three_digits(nanoseconds: int, text: str) -> None:
    assert latency_text(nanoseconds) == text


@pytest.mark.parametrize(
    ("per_second", "text"), [(0, "0/s"), (0.25, "0.2/s"), (9.94, "9.9/s"), (9.96, "10/s"), (12345.6, "12,346/s")]
)
def test_rates(per_second: float, text: str) -> None:
    assert rate_text(per_second) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3_661, "1 h 1 min"), (90_061.5, "1 d 1 h")],
)
def test_durations_have_two_parts(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**50, "5120.0 TiB")])
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_counts() -> None:
    assert [count_text(number, "key") for number in (0, 1, 1500)] == ["0 keys", "1 key", "1,500 keys"]
    assert count_text(2, "entry", "entries") == "2 entries"

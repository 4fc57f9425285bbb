"""Numbers as people read them: sizes, durations, rates, counts."""

from __future__ import annotations

_SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_TIME_UNITS = ((1, "ns"), (1_000, "us"), (1_000_000, "ms"), (1_000_000_000, "s"))


def size_text(size_bytes: float) -> str:
    """``192.0 MiB``."""
    unit = 0
    while size_bytes >= 1024 and unit + 1 < len(_SIZE_UNITS):
        size_bytes /= 1024
        unit += 1
    return f"{size_bytes:.1f} {_SIZE_UNITS[unit]}" if unit else f"{size_bytes:.0f} B"


def duration_text(seconds: float) -> str:
    """The two largest parts of a duration: ``1 d 1 h``, ``59 s``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{value} {unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))]
    while len(parts) > 1 and parts[0].startswith("0 "):
        del parts[0]
    return " ".join(parts[:2])


def latency_text(nanoseconds: int) -> str:
    """Three significant digits in the unit that suits: ``812 us``, ``1.23 ms``, ``30.0 s``."""
    divisor, unit = next(
        ((divisor, unit) for divisor, unit in reversed(_TIME_UNITS) if nanoseconds >= divisor), _TIME_UNITS[0]
    )
    number = nanoseconds / divisor
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits if divisor > 1 else 0}f} {unit}"


def rate_text(per_second: float) -> str:
    """``1,234/s``; below ten with one digit behind the point."""
    return f"{per_second:,.1f}/s" if 0 < per_second < 9.95 else f"{per_second:,.0f}/s"


def count_text(number: int, one: str, many: str | None = None) -> str:
    """``1 key``, ``1,500 keys``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"

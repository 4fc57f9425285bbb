"""The plan that decides where a simulated process dies and which calls fail."""

import errno
from pathlib import Path

import pytest

from support.crash_plan import DROPPED, KEPT, Call, CrashPlan, SimulatedCrash, Survival, torn

PATH = Path("/data/wal/1.wal")


def test_calls_are_numbered_and_recorded_as_readable_tuples() -> None:
    plan = CrashPlan()
    assert plan.begin("write_at", PATH, "[0:5]") is None
    assert plan.begin("sync", PATH) is None
    assert plan.calls == [(1, "write_at", str(PATH), "[0:5]"), (2, "sync", str(PATH), "")]
    assert plan.story() == "#1 write_at /data/wal/1.wal [0:5]\n#2 sync /data/wal/1.wal"


def test_the_process_dies_at_its_call_and_stays_dead() -> None:
    plan = CrashPlan(crash_at=2, crash_partial=0.5)
    plan.begin("create", PATH)
    interruption = plan.begin("write_at", PATH)
    assert interruption is not None
    assert interruption.error is None
    assert interruption.partial == 0.5
    assert isinstance(interruption.exception(), SimulatedCrash)
    with pytest.raises(SimulatedCrash):
        plan.begin("sync", PATH)
    with pytest.raises(SimulatedCrash):
        plan.check_alive()
    assert len(plan.calls) == 2


def test_no_handler_of_exceptions_swallows_a_crash() -> None:
    assert not issubclass(SimulatedCrash, Exception)


@pytest.mark.parametrize(
    ("when", "options", "expected"),
    [
        (2, {}, [False, True, False, False]),
        (("sync", "*"), {}, [False, True, False, False]),
        (("sync", "*.wal"), {"sticky": True}, [False, True, False, True]),
        (("sync", "*"), {"skip": 1}, [False, False, False, True]),
        (("*", "*.tmp"), {"sticky": True}, [False, False, False, False]),
        (("write_at", "/data/*"), {"sticky": True}, [True, False, True, False]),
    ],
)
def test_failures_strike_the_calls_they_name(
    when: int | tuple[str, str], options: dict[str, int], expected: list[bool]
) -> None:
    plan = CrashPlan()
    failure = plan.fail(when, errno.ENOSPC, **options)  # type: ignore[arg-type]
    struck = [plan.begin(operation, PATH) for operation in ("write_at", "sync", "write_at", "sync")]
    assert [each is not None for each in struck] == expected
    assert failure.hits == sum(expected)
    for each in struck:
        if each is not None:
            error = each.exception()
            assert isinstance(error, OSError)
            assert (error.errno, error.filename) == (errno.ENOSPC, str(PATH))


@pytest.mark.parametrize("survival", [KEPT, DROPPED, torn(0), torn(17)])
def test_survivals_print_and_parse(survival: Survival) -> None:
    assert Survival.parse(str(survival)) == survival


def test_a_call_prints_without_trailing_space() -> None:
    assert str(Call(3, "sync", "/x", "")) == "#3 sync /x"

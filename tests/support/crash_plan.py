"""When a simulated process dies, and which of its calls to disk and engine fail.

One `CrashPlan` is one life of one process: the doubles of its disk and of its engine share it, so that their
calls are numbered together and every one of them is a point at which the process can be killed.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple


class SimulatedCrash(BaseException):
    """The process died here. No `except Exception` of the code under test can swallow it."""


class Call(NamedTuple):
    """One numbered call.

    Attributes:
        number: 1, 2, 3 ... within the plan.
        operation: ``write_at``, ``sync``, ``rename``, ``engine_write`` and so on.
        path: what it was called on, by its present name.
        detail: its other arguments, for people.
    """

    number: int
    operation: str
    path: str
    detail: str

    def __str__(self) -> str:
        return f"#{self.number} {self.operation} {self.path} {self.detail}".rstrip()


@dataclass(slots=True)
class Failure:
    """A wish that calls fail.

    Attributes:
        error: the errno, such as `errno.ENOSPC`.
        operation: a glob that the operation's name matches.
        path: a glob that the path's text matches (``*`` matches slashes too).
        number: only the call with this number; None for any.
        skip: how many calls that match are let through before the first that fails.
        sticky: whether all later calls that match fail too, or only one does.
        partial: how much of the call takes effect before it fails, 0 to 1; the double says what that means.
        hits: how many calls failed through it so far.
    """

    error: int
    operation: str = "*"
    path: str = "*"
    number: int | None = None
    skip: int = 0
    sticky: bool = False
    partial: float = 0.0
    hits: int = 0

    def strikes(self, call: Call) -> bool:
        """Whether this call is to fail; counts it."""
        if self.number not in (None, call.number) or (self.hits and not self.sticky):
            return False
        if not fnmatchcase(call.operation, self.operation) or not fnmatchcase(call.path, self.path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.hits += 1
        return True


class Interruption(NamedTuple):
    """What is to become of a call that does not go through.

    Attributes:
        call: which one.
        error: the errno to report, None when the process dies in it.
        partial: how much of it takes effect first, 0 to 1.
    """

    call: Call
    error: int | None
    partial: float

    def exception(self) -> BaseException:
        """What a disk's call raises for it."""
        if self.error is None:
            return SimulatedCrash(str(self.call))
        return OSError(self.error, os.strerror(self.error), self.call.path)


@dataclass(slots=True)
class CrashPlan:
    """One life of one process.

    Attributes:
        crash_at: the number of the call in which it dies; None for never.
        crash_partial: how much of that call takes effect, 0 to 1, for the operations that can be half done.
        failures: calls that fail; tests may add and remove some while the process runs.
        calls: everything called so far.
        dead: whether the process died; from then on every call raises `SimulatedCrash`.
        lock: held by the doubles during each call.
    """

    crash_at: int | None = None
    crash_partial: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    dead: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fail(
        self,
        when: int | tuple[str, str],
        error: int = errno.EIO,
        *,
        skip: int = 0,
        sticky: bool = False,
        partial: float = 0.0,
    ) -> Failure:
        """Add a failure: of the call with a number, or of calls that match (operation glob, path glob)."""
        if isinstance(when, int):
            failure = Failure(error, number=when, partial=partial)
        else:
            failure = Failure(error, operation=when[0], path=when[1], skip=skip, sticky=sticky, partial=partial)
        self.failures.append(failure)
        return failure

    def begin(self, operation: str, path: Path, detail: str = "") -> Interruption | None:
        """Number and record a call, and say whether it goes through (None).

        Raises:
            SimulatedCrash: the process is dead already.
        """
        self.check_alive()
        call = Call(len(self.calls) + 1, operation, str(path), detail)
        self.calls.append(call)
        if call.number == self.crash_at:
            self.dead = True
            return Interruption(call, None, self.crash_partial)
        for failure in self.failures:
            if failure.strikes(call):
                return Interruption(call, failure.error, failure.partial)
        return None

    def check_alive(self) -> None:
        """Raise `SimulatedCrash` if the process is dead."""
        if self.dead:
            raise SimulatedCrash("the process is dead")

    def kill(self) -> None:
        """Let the process die between two calls."""
        self.dead = True

    def story(self, last: int = 12) -> str:
        """The last calls, one a line, for the message of a failed test."""
        return "\n".join(str(call) for call in self.calls[-last:])


class SurvivalMode(Enum):
    """What of the unsynced changes outlives the process."""

    KEPT = "kept"
    DROPPED = "dropped"
    TORN = "torn"


class Survival(NamedTuple):
    """A survival mode, with the seed that decides where it leaves a choice."""

    mode: SurvivalMode
    seed: int = 0

    def __str__(self) -> str:
        return self.mode.value if self.mode is not SurvivalMode.TORN else f"torn:{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Survival:
        """Read what ``str`` printed."""
        mode, _, seed = text.partition(":")
        return cls(SurvivalMode(mode), int(seed or 0))


#: A process kill: the operating system goes on and has all that it was told, though not on stable storage.
KEPT = Survival(SurvivalMode.KEPT)

#: A power loss after which exactly what was synced is there.
DROPPED = Survival(SurvivalMode.DROPPED)


def torn(seed: int) -> Survival:
    """A power loss after which any of the unsynced changes may be there, wholly or in part."""
    return Survival(SurvivalMode.TORN, seed)

"""The standard descriptors 0, 1 and 2: that each is open, however the process was started."""

from __future__ import annotations

import os
import sys


def keep_standard_descriptors() -> None:
    """Open /dev/null in place of those that are closed, as after `>&-` in a shell.

    Otherwise the next file or socket gets the number, is written to by whoever means stdout or stderr, and uvloop
    aborts the process when it closes it. What is said on stderr is lost then. `sys.stdout` stays None where it was, so
    that a command which is there to print can refuse.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115

"""A network namespace of a test's own: every port is free there, and nobody else is reached."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from types import TracebackType
from typing import Self

#: Sets the loopback interface up, says so, and keeps the namespace until its input ends.
_HOLDER = """
import fcntl, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x41
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP_RUNNING))
print("up", flush=True)
sys.stdin.read()
"""


class NetworkNamespace:
    """A new namespace with nothing but a loopback interface. What still runs in it at the end is not ended by it."""

    def __init__(self) -> None:
        self._holder: subprocess.Popen[str] | None = None

    @staticmethod
    def objection() -> str | None:
        """Why there can be none here; None = there can."""
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            return "util-linux's unshare and nsenter are missing"
        if os.geteuid() != 0:
            return "only root makes network namespaces"
        trial = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
        return f"no network namespace can be made: {trial.stderr.strip()}" if trial.returncode else None

    def __enter__(self) -> Self:
        command = ["unshare", "--net", sys.executable, "-c", _HOLDER]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "up\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._holder is not None
        self._holder.communicate(timeout=10)

    def inside(self, *command: str) -> list[str]:
        """The command line that runs another one in the namespace."""
        assert self._holder is not None
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", *command]

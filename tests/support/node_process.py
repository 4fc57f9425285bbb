"""A real node in a process of its own, on ports that the kernel chose, with its log captured."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any, Self

from support.openapi import check_status

_LISTENING = re.compile(r"\bevent=listening\b")
_ADDRESS = re.compile(r"\b(http|peer)=(\S+)")

#: A start may have to replay a log; a stop ends within 10 s by itself. Both on a busy machine.
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 20.0


class NodeProcess:
    """`kvnode start` on a data directory, as often as wanted.

        with NodeProcess(tmp_path / "data") as node:
            ... node.url ...
            node.kill()
            node.restart()

    The first start lets the kernel choose the ports, later ones use the same again, so that `url` stays valid. The
    environment's KVNODE_* variables do not reach the process.

    Args:
        data: the data directory; made by the node.
        flags: more options of `kvnode start`. `--http` and `--peer` among them replace the chosen ports.
        join: the peer address of a primary: the node follows it, by `kvnode join`. May be changed between two runs.
        environment: more variables for the process.

    Attributes:
        log: what all runs wrote to stderr, line by line; grows while a node runs.
        process: the present or last run, None before the first.
    """

    def __init__(
        self, data: Path, *flags: str, join: str | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.data = data
        self.join = join
        self.flags = flags
        self.log: list[str] = []
        self.process: subprocess.Popen[str] | None = None
        self._environment = environment or {}
        self._addresses: dict[str, str] = {}
        self._reader: threading.Thread | None = None
        #: set when the present run listens, or has ended
        self._is_settled = threading.Event()
        self._is_listening = False

    def __enter__(self) -> Self:
        self.start()
        self.wait_ready()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.is_running:
            self.stop()

    @property
    def url(self) -> str:
        """`http://HOST:PORT` of the REST interface."""
        return f"http://{self._addresses['http']}"

    @property
    def peer(self) -> str:
        """`HOST:PORT` of the peer protocol."""
        return self._addresses["peer"]

    @property
    def pid(self) -> int:
        """The process id of the present or last run."""
        assert self.process is not None, "the node was never started"
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is there; it may be on its way up or down."""
        return self.process is not None and self.process.poll() is None

    def command(self) -> list[str]:
        """The command line of the next start."""
        chosen = [
            text
            for name in ("http", "peer")
            if not any(flag.partition("=")[0] == f"--{name}" for flag in self.flags)
            for text in (f"--{name}", self._addresses.get(name, "127.0.0.1:0"))
        ]
        command = ["start"] if self.join is None else ["join", self.join]
        return [sys.executable, "-P", "-m", "kvnode.cli", *command, "--data", str(self.data), *chosen, *self.flags]

    def start(self) -> None:
        """Begin a run and return at once; see `wait_ready`."""
        assert not self.is_running, "the node is running"
        self._close()
        environment = {name: text for name, text in os.environ.items() if not name.startswith("KVNODE_")}
        self._is_settled.clear()
        self._is_listening = False
        self.process = subprocess.Popen(
            self.command(),
            env=environment | self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read_log, args=(self.process,), daemon=True)
        self._reader.start()

    def wait_ready(self, timeout_s: float = _START_TIMEOUT_S) -> None:
        """Return once the node listens.

        Raises:
            AssertionError: it ended, or did not get there in time; with its log.
        """
        is_in_time = self._is_settled.wait(timeout_s)
        assert is_in_time, f"the node does not listen after {timeout_s} s\n{self.text}"
        assert self._is_listening, f"the node ended with {self.wait()} instead of listening\n{self.text}"

    def kill(self) -> None:
        """End the run with SIGKILL."""
        assert self.process is not None, "the node was never started"
        self.process.kill()
        self.wait()

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> int:
        """End the run with SIGTERM, if there is one, and return its exit code; after `timeout_s` kill it.

        Raises:
            AssertionError: it had to be killed; with its log.
        """
        assert self.process is not None, "the node was never started"
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the node did not stop within {timeout_s} s\n{self.text}") from None

    def restart(self) -> None:
        """Stop the run if there is one, begin another, and wait until it listens."""
        if self.is_running:
            self.stop()
        self.start()
        self.wait_ready()

    def wait(self, timeout_s: float = _STOP_TIMEOUT_S) -> int:
        """Wait for the process to end by itself; return its exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it does not.
        """
        assert self.process is not None, "the node was never started"
        code = self.process.wait(timeout_s)
        self._close()
        return code

    @property
    def text(self) -> str:
        """The log as one text, for messages."""
        return "".join(self.log) or "(the log is empty)"

    def status(self) -> dict[str, Any]:
        """GET /status, decoded, and held against its description."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/status", timeout=10) as answer:
            fields: dict[str, Any] = json.load(answer)
        check_status(fields)
        return fields

    def _read_log(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.log.append(line)
            if _LISTENING.search(line):
                self._addresses.update(_ADDRESS.findall(line))
                self._is_listening = True
                self._is_settled.set()
        self._is_settled.set()

    def _close(self) -> None:
        """Take what is left of an ended run's log, and free its pipe."""
        if self._reader is not None and self.process is not None:
            self._reader.join(_STOP_TIMEOUT_S)
            assert self.process.stderr is not None
            self.process.stderr.close()
            self._reader = None

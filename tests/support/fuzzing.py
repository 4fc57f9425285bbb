"""Schemathesis against a live node: requests made from an OpenAPI document, and its answers held against that.

It runs as a command, in a process of its own, with the settings below and the hooks of `support.fuzzing_hooks`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

_HOOKS = Path(__file__).with_name("fuzzing_hooks.py")

_SETTINGS = f"""
hooks = {json.dumps(str(_HOOKS))}
seed = SEED
color = false
continue-on-failure = true
request-timeout = 20
# Of /events, whose answer has no end: what comes at once.
max-stream-events = 2

[generation]
max-examples = EXAMPLES
# The same requests for the same seed, whatever was found in earlier runs.
database = "none"

# What is in requests is no secret here.
[output]
sanitization.enabled = false

[checks]
# 503 says that a node cannot do it now, 504 that replicas did not: both are asked for here. Never 500.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503, 504]
# What a schema allows can be unknown, out of the history, longer in bytes than in characters; or not possible now.
positive_data_acceptance.expected-statuses = ["2xx", "3xx", 404, 409, 413, 503, 504]
negative_data_rejection.expected-statuses = [400, 404, 413]
# Keys belong to nobody: any client may have written or deleted one meanwhile.
use_after_free.enabled = false
ensure_resource_availability.enabled = false
# There are no credentials.
ignored_auth.enabled = false
object_level_authorization.enabled = false

# Its schema is that of the text, which comes here as a list of events; another test looks into them.
[[operations]]
include-path = "/events"
checks.response_schema_conformance.enabled = false
"""


class Fuzzed(NamedTuple):
    """What came of a run.

    Attributes:
        failures: checks that failed, by the names of Schemathesis' classes, and the operations that they failed for.
        output: what Schemathesis printed.
        operations: how many it tested.
        cases: how many requests it made of them.
    """

    failures: dict[str, set[str]]
    output: str
    operations: int
    cases: int


class Fuzzing:
    """A run, from its construction on; it ends by itself, at the latest with `kill` or at the end of a `with` block."""

    def __init__(
        self,
        url: str,
        document: dict[str, Any],
        directory: Path,
        *,
        seed: int,
        examples: int,
        filters: Sequence[str] = (),
        phases: str = "examples,coverage,fuzzing,stateful",
    ) -> None:
        """Begin.

        Args:
            directory: for the files of this run; made here.
            examples: most requests of each operation and phase.
            filters: options of Schemathesis that choose among the operations.
        """
        directory.mkdir()
        described, settings = directory / "openapi.json", directory / "schemathesis.toml"
        described.write_text(json.dumps(document), "utf-8")
        settings.write_text(_SETTINGS.replace("SEED", str(seed)).replace("EXAMPLES", str(examples)), "utf-8")
        self._directory = directory
        self._output = (directory / "output").open("w+", encoding="utf-8")
        # Nothing of the user's settings, of a proxy among them.
        environment = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
        self._process = subprocess.Popen(
            (
                *(sys.executable, "-P", "-m", "schemathesis.cli", "--config-file", str(settings), "run"),
                *(str(described), "--url", url, "--phases", phases),
                *("--report", "json", "--report-json-path", str(directory / "report.json"), *filters),
            ),
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def finish(self, timeout_s: float) -> Fuzzed:
        """Wait for its end.

        Raises:
            AssertionError: it did not come in time, or it was none of a run that was made.
        """
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end within {timeout_s:g} s\n{self._read()}") from None
        output = self._read()
        assert code in (0, 1), f"exit code {code}\n{output}"
        report = json.loads((self._directory / "report.json").read_text("utf-8"))
        assert not report["errors"], output
        failures: dict[str, set[str]] = {}
        for failure in report["failures"]:
            failures.setdefault(failure["type"], set()).update(failure["operations"])
        assert bool(failures) == (code == 1), output
        return Fuzzed(failures, output, report["operations"]["tested"], report["test_cases"]["generated"])

    def kill(self) -> None:
        """End it now, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._output.close()

    def _read(self) -> str:
        if self._output.closed:
            return (self._directory / "output").read_text("utf-8")
        self._output.flush()
        self._output.seek(0)
        text = self._output.read()
        self._output.close()
        return text

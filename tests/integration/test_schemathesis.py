"""Real nodes answer as their OpenAPI document says, whatever they are asked, and never with 500.

Schemathesis makes the requests from the document: its examples, values at and one past every limit, wrong ones, random
ones, and sequences of writes and reads. `--long` makes it try many more, from another seed each time.
"""

import http.client
import json
import random
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.cluster import Cluster, Rest, wait_until
from support.fuzzing import Fuzzed, Fuzzing
from support.node_process import NodeProcess
from support.openapi import operations, problems, strict

_SEED = 20
_EXAMPLES = 6
_LONG_EXAMPLES = 400

#: So that random requests come to be over them.
_SMALL_LIMITS = (
    "--max-key-bytes=40",
    "--max-value-bytes=300",
    "--max-batch-items=4",
    "--max-batch-bytes=400",
    "--max-body-bytes=1000",
)

#: It changes who is who; it has a test of its own.
_PROMOTE = "/cluster/promote"

_RUN_S = 150.0
_LONG_RUN_S = 1800.0


def _document(node: NodeProcess) -> dict[str, Any]:
    """What the node says of itself."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{node.url}/openapi.json", timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
    return document


def _without(*paths: str) -> list[str]:
    return [option for path in paths for option in ("--exclude-path", path)]


def _only(*paths: str) -> list[str]:
    return [option for path in paths for option in ("--include-path", path)]


def _check(run: Fuzzed) -> None:
    print(run.output)
    assert run.failures == {}


def _check_log(node: NodeProcess) -> None:
    """A client's mistakes leave nothing in a node's log."""
    complaints = [line for line in node.log if "request_failed" in line or "answer_broken_off" in line]
    assert complaints == []


def _events(node: NodeProcess) -> Iterator[tuple[str, Any]]:
    """(name, data) of the events of a node."""
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET", "/events")
        answer = connection.getresponse()
        assert answer.headers["Content-Type"] == "text/event-stream"
        fields: dict[str, str] = {}
        while line := answer.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif "data" in fields:
                yield fields["event"], json.loads(fields["data"])
                fields = {}
    finally:
        connection.close()


def _check_metrics(node: NodeProcess, document: dict[str, Any]) -> None:
    """Check that the excerpt that is shown is one, but for its values."""
    content = document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]["text/plain"]
    comments = [line for line in content["examples"]["metrics"]["value"].splitlines() if line.startswith("#")]
    assert comments
    with Rest(node) as rest:
        _, body = rest.request("GET", "/metrics")
    assert set(comments) <= set(body.decode().splitlines())


def _check_without_primary(replica: NodeProcess, document: dict[str, Any]) -> None:
    """Check what a replica says whose primary is away."""
    wait_until(lambda: "error" in (replica.status()["primary"] or {}), "it sees that", replica)
    error = {"$ref": "#/components/schemas/NoPrimaryError"}
    with Rest(replica) as rest:
        for status, body in (rest.post("/put", {"key": "k", "value": 1}), rest.get("/ready?max_lag=0")):
            assert (status, body["error"]["code"]) == (503, "no_primary")
            assert problems(document, error, body) == []


def _check_events(node: NodeProcess, document: dict[str, Any]) -> None:
    """Check one event of each kind."""
    schemas = {"entries": "EntriesEvent", "status": "StatusEvent"}
    for event, data in _events(node):
        assert problems(document, {"$ref": f"#/components/schemas/{schemas.pop(event)}"}, data) == []
        if not schemas:
            return
    raise AssertionError(f"no event {list(schemas)}")


def _fuzz_a_pair(
    tmp_path: Path, flags: Sequence[str], seed: int, examples: int, run_s: float, *, heads_twice: bool
) -> None:
    """Fuzz a primary and its replica at the same time.

    Args:
        flags: of both nodes.
        examples: of each operation.
        heads_twice: whether both are asked for heads, and not the replica alone.
    """
    print(f"seeds {seed} and {seed + 1}")
    with Cluster(tmp_path, *flags, replicas=1) as cluster:
        documents = {node: strict(_document(node)) for node in cluster.nodes}
        assert documents[cluster.web1] == documents[cluster.web2]
        runs = [
            Fuzzing(
                node.url,
                document,
                tmp_path / f"run{number}",
                seed=seed + number,
                examples=examples,
                filters=_without(_PROMOTE) + (["--exclude-method", "HEAD"] if number == 0 and not heads_twice else []),
            )
            for number, (node, document) in enumerate(documents.items())
        ]
        try:
            counts = []
            for run in runs:
                fuzzed = run.finish(run_s)
                _check(fuzzed)
                counts.append(fuzzed.operations)
                assert fuzzed.cases > 20 * fuzzed.operations
            assert counts[1] == len(list(operations(documents[cluster.web2]))) - 1
        finally:
            for run in runs:
                run.kill()
        for node, document in documents.items():
            _check_log(node)
            _check_events(node, document)
            _check_metrics(node, document)
        cluster.agree()
        cluster.web1.kill()
        _check_without_primary(cluster.web2, documents[cluster.web2])


@pytest.mark.timeout(240)
def test_a_primary_and_its_replica(tmp_path: Path) -> None:
    _fuzz_a_pair(tmp_path, _SMALL_LIMITS, _SEED, _EXAMPLES, _RUN_S, heads_twice=False)


@pytest.mark.timeout(2 * _LONG_RUN_S)
@pytest.mark.parametrize("flags", [(), _SMALL_LIMITS], ids=["defaults", "small limits"])
def test_a_primary_and_its_replica_at_length(
    tmp_path: Path, request: pytest.FixtureRequest, flags: Sequence[str]
) -> None:
    if not request.config.getoption("--long"):
        pytest.skip("takes minutes: ask for it with --long")
    _fuzz_a_pair(tmp_path, flags, random.randrange(1 << 32), _LONG_EXAMPLES, _LONG_RUN_S, heads_twice=True)


@pytest.mark.timeout(240)
def test_a_promotion_and_what_it_leaves_behind(tmp_path: Path) -> None:
    """A replica is promoted while its primary reigns; which then says that it has been superseded."""
    with Cluster(tmp_path, replicas=1) as cluster:
        document = strict(_document(cluster.web1))
        with Fuzzing(
            cluster.web2.url,
            document,
            tmp_path / "promoted",
            seed=_SEED,
            examples=5,
            filters=_only(_PROMOTE),
            phases="examples,coverage,fuzzing",
        ) as promoted:
            _check(promoted.finish(_RUN_S))
        assert cluster.web2.status()["role"] == "primary"
        wait_until(lambda: "fenced" in cluster.web1.status(), "web1 knows of it", *cluster.nodes)
        with Fuzzing(
            cluster.web1.url,
            document,
            tmp_path / "fenced",
            seed=_SEED,
            examples=5,
            filters=_without(_PROMOTE),
            phases="examples,fuzzing",
        ) as fenced:
            _check(fenced.finish(_RUN_S))
        _check_events(cluster.web1, document)
        _check_events(cluster.web2, document)
        for node in cluster.nodes:
            _check_log(node)


@pytest.mark.timeout(240)
def test_the_check_finds_faults(tmp_path: Path) -> None:
    """The same check of the same node fails if the document says something else."""
    with NodeProcess(tmp_path / "data") as node:
        document = strict(_document(node))
        paths, components = document["paths"], document["components"]
        # A status that is not described; nor is a member; a header that does not come; a limit that is none.
        del paths["/read/{key}"]["get"]["responses"]["404"]
        status = components["schemas"]["Status"]
        status["required"].remove("wal")
        del status["properties"]["wal"]
        paths["/health"]["get"]["responses"]["200"]["headers"] = {"ETag": {"$ref": "#/components/headers/ETag"}}
        components["parameters"]["limit"]["schema"]["maximum"] = 1000
        with Fuzzing(
            node.url,
            document,
            tmp_path / "run",
            seed=_SEED,
            examples=2,
            phases="examples,coverage",
            filters=("--exclude-method", "HEAD", *_only("/read/{key}", "/status", "/health", "/readrange")),
        ) as run:
            fuzzed = run.finish(_RUN_S)
    assert fuzzed.failures == {
        "UndefinedStatusCode": {"GET /read/{key}"},
        "JsonSchemaError": {"GET /status"},
        "MissingHeaders": {"GET /health"},
        "AcceptedNegativeData": {"GET /readrange"},
    }

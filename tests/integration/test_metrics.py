"""GET /metrics of real nodes, as Prometheus, its promtool, and the files in compose/ take it."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from support.cluster import Cluster, Load, Rest, wait_until
from support.dashboard_files import COMPOSE, expressions_of_alerts, expressions_of_dashboard
from support.node_process import NodeProcess
from support.project import ROOT
from support.prometheus import metrics_of, promtool, scrape, serving

# Its nodes are started once, by whoever runs it.

#: What Prometheus asks for.
_ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"

#: A row of METRICS.md: name, type, labels.
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| [^|]+ \|$", re.MULTILINE)


class Scene(NamedTuple):
    """A primary, a replica that follows it, and what both told after all kinds of requests. A third node is gone."""

    web1: NodeProcess
    web2: NodeProcess
    at_first: tuple[dict[str, float], dict[str, float]]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with Cluster(tmp_path_factory.mktemp("metrics"), "--cache-bytes=1MiB") as cluster:
        web1, web2, web3 = cluster.nodes
        for node in (web1, web2):
            with Rest(node) as rest:
                for number in range(20):
                    assert rest.post("/put", {"key": f"{node.url}/{number}", "value": "x" * 100})[0] == 200
                    assert rest.get(f"/read/missing/{number}")[0] == 404
                assert rest.post("/put", {"key": "hot", "value": 1})[0] == 200
                assert rest.get("/read/hot")[0] == 200
                assert rest.get("/readrange")[0] == 200
                assert rest.get("/no/such/route")[0] == 404
                assert rest.post("/put", {"unknown": 1})[0] == 400
            malformed(node)
        web3.kill()
        wait_until(lambda: replica_states(web1) == {"web2": "streaming", "web3": "disconnected"}, "web3 is gone", web1)
        yield Scene(web1, web2, (samples_of(web1), samples_of(web2)))


def malformed(node: NodeProcess) -> None:
    """Send what is no HTTP."""
    host, _, port = node.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 400"


def replica_states(node: NodeProcess) -> dict[str, str]:
    return {each["name"]: each["state"] for each in node.status()["replicas"]}


def samples_of(node: NodeProcess) -> dict[str, float]:
    """Values by name and labels as Prometheus writes them."""
    lines = [line for line in scrape(node)[1].splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_promtool_has_nothing_to_complain_of_under_load(scene: Scene) -> None:
    with Load(scene.web2) as load:
        load.wait_for(50)
        bodies = [scrape(node)[1] for node in (scene.web1, scene.web2)]
    for body in bodies:
        assert promtool("check", "metrics", stdin=body.encode()).strip() == ""


def test_promtool_would_complain() -> None:
    with pytest.raises(AssertionError, match="_total"):
        promtool(
            "check", "metrics", stdin=b"# HELP kvnode_writes Writes.\n# TYPE kvnode_writes counter\nkvnode_writes 1\n"
        )


def test_both_formats_hold_the_same(scene: Scene) -> None:
    for node in (scene.web1, scene.web2):
        text_type, text = scrape(node)
        assert text_type == "text/plain; version=0.0.4; charset=utf-8"
        open_type, open_text = scrape(node, _ACCEPT)
        assert open_type.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
        assert open_text.endswith("# EOF\n")
        # The reader of OpenMetrics is strict: order, units, the form of buckets' bounds.
        strict = [sample.name for family in parse_openmetrics(open_text) for sample in family.samples]
        assert strict == [sample.name for family in parse_text(text) for sample in family.samples]


def test_head(scene: Scene) -> None:
    with Rest(scene.web1) as rest:
        assert rest.request("HEAD", "/metrics") == (200, b"")


def test_the_page_names_exactly_what_there_is(scene: Scene) -> None:
    """Names, types and labels; each node has all families."""
    documented = {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in _ROW.findall((ROOT / "node" / "METRICS.md").read_text("utf-8"))
    }
    texts = [scrape(node)[1] for node in (scene.web1, scene.web2)]
    types = [dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)) for text in texts]
    assert types[0] == types[1]
    labels: dict[str, frozenset[str]] = dict.fromkeys(types[0], frozenset())
    for text in texts:
        for family in parse_text(text):
            for sample in family.samples:
                name = sample.name if sample.name in labels else family.name
                labels[name] |= frozenset(sample.labels) - {"le"}
    assert documented == {name: (kind, labels[name]) for name, kind in types[0].items()}


def test_what_was_done_is_counted(scene: Scene) -> None:
    primary, replica = scene.at_first
    for values in (primary, replica):
        assert values['kvnode_http_requests_total{route="/put",status="200"}'] == 21
        assert values['kvnode_http_requests_total{route="/put",status="400"}'] == 1
        assert values['kvnode_http_requests_total{route="/read/{key}",status="404"}'] == 20
        assert values['kvnode_http_requests_total{route="none",status="404"}'] == 1
        assert values['kvnode_http_errors_total{code="key_not_found",route="/read/{key}"}'] == 20
        assert values['kvnode_http_errors_total{code="route_not_found",route="none"}'] == 1
        assert values['kvnode_http_request_duration_seconds_count{route="/read/{key}"}'] == 21
        assert values["kvnode_http_malformed_total"] == 1
        assert values["kvnode_wal_fsync_duration_seconds_count"] >= 1
        assert values["kvnode_range_items_total"] >= 20
        assert values["kvnode_data_filesystem_size_bytes"] > values["kvnode_data_filesystem_free_bytes"] > 0
        assert (values["kvnode_ready"], values["kvnode_members"]) == (1, 3)
    assert (primary["kvnode_is_primary"], replica["kvnode_is_primary"]) == (1, 0)
    assert 'kvnode_replica_lag_seconds{replica="web3"}' not in primary
    assert primary['kvnode_replica_lag_seconds{replica="web2"}'] == 0
    assert (
        primary['kvnode_replica_connected{replica="web2"}'],
        primary['kvnode_replica_connected{replica="web3"}'],
    ) == (1, 0)
    assert primary['kvnode_replica_state{replica="web3",state="disconnected"}'] == 1
    assert primary['kvnode_replica_state{replica="web3",state="streaming"}'] == 0
    assert primary['kvnode_replica_sent_bytes_total{replica="web2"}'] > 40 * 100
    assert replica["kvnode_primary_received_bytes_total"] > 40 * 100
    assert replica["kvnode_primary_connected"] == 1
    assert replica['kvnode_forwarded_writes_total{outcome="ok"}'] >= 21
    assert "kvnode_primary_connected" not in primary


def test_dashboard_and_alerts_ask_for_what_there_is(scene: Scene) -> None:
    names = {name.partition("{")[0] for node in (scene.web1, scene.web2) for name in samples_of(node)}
    for where, expression in (expressions_of_dashboard() | expressions_of_alerts()).items():
        asked = metrics_of(expression)
        assert asked, where
        assert asked <= names | {"up"}, where


def test_a_real_server_scrapes_and_answers_all_that_panels_and_alerts_ask(scene: Scene, tmp_path: Path) -> None:
    nodes = (scene.web1, scene.web2)
    targets = json.dumps([node.url.removeprefix("http://") for node in nodes])
    config = (COMPOSE / "prometheus.yml").read_text("utf-8")
    config = re.sub(r"targets: \[.*\]", f"targets: {targets}", config)
    config = re.sub(r"(scrape|evaluation)_interval: \w+", r"\1_interval: 300ms", config)
    config = re.sub(r"scrape_timeout: \w+", "scrape_timeout: 300ms", config)
    with serving(tmp_path, config, [COMPOSE / "alerts.yml"]) as server:

        def scraped() -> bool:
            found = server.query("min(count_over_time(up[1m]))")
            return bool(found) and int(found[0]["value"][1]) >= 3

        wait_until(scraped, "Prometheus scrapes some times", *nodes)
        assert [each["value"][1] for each in server.query("sum(up)")] == ["2"]
        assert all(each["health"] == "up" for each in server.ask("targets")["activeTargets"])
        (cluster_id,) = {each["metric"]["cluster"] for each in server.query("kvnode_node_info")}
        variables = {"$__rate_interval": "1m", "$instance": ".+", "$cluster": cluster_id}
        for where, expression in expressions_of_dashboard().items():
            for name, value in variables.items():
                expression = expression.replace(name, value)
            assert server.query(expression), f"{where} shows nothing: {expression}"
        rules = [rule for group in server.ask("rules")["groups"] for rule in group["rules"]]
        assert {rule["name"] for rule in rules} == set(expressions_of_alerts())
        assert {rule["lastError"] for rule in rules if "lastError" in rule} == set()
        # It is only after two minutes that the alert would fire.
        (away,) = server.query(expressions_of_alerts()["KvnodeReplicaDisconnected"])
        assert away["metric"]["replica"] == "web3"

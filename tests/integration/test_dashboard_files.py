"""The files in compose/ for Prometheus and Grafana, without any node."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.dashboard_files import COMPOSE, alerts, dashboard
from support.prometheus import promtool

PANELS: list[dict[str, Any]] = dashboard()["panels"]


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-local.yml"])
def test_promtool_takes_the_configuration(name: str) -> None:
    said = promtool("check", "config", COMPOSE / name)
    assert "1 rule files found" in said
    assert f"{len(alerts())} rules found" in said


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    assert "SUCCESS" in promtool("test", "rules", COMPOSE / "alerts_test.yml")


def test_every_alert_is_seen_to_fire_and_to_be_silent() -> None:
    tests = yaml.safe_load((COMPOSE / "alerts_test.yml").read_text("utf-8"))["tests"]
    expected = [each for test in tests for each in test["alert_rule_test"]]
    assert {each["alertname"] for each in expected if each.get("exp_alerts")} == set(alerts())
    assert {each["alertname"] for each in expected if not each.get("exp_alerts")} == set(alerts())


def test_alerts_that_are_wrong_are_noticed(tmp_path: Path) -> None:
    rules = (COMPOSE / "alerts.yml").read_text("utf-8")
    (tmp_path / "alerts.yml").write_text(rules.replace("> 10\n", "> 100\n"), "utf-8")
    (tmp_path / "alerts_test.yml").write_text((COMPOSE / "alerts_test.yml").read_text("utf-8"), "utf-8")
    with pytest.raises(AssertionError, match="KvnodeReplicaLags"):
        promtool("test", "rules", tmp_path / "alerts_test.yml")


@pytest.mark.parametrize("rule", alerts().values(), ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Kvnode(?:[A-Z][a-z]+)+", rule["alert"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in itertools.combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_the_data_source_is_chosen_by_who_looks() -> None:
    variables = {each["name"]: each for each in dashboard()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asking = [panel for panel in PANELS if panel["type"] != "row"]
    sources = [each["datasource"] for panel in asking for each in (panel, *panel["targets"])]
    sources += [each["datasource"] for each in variables.values() if each["type"] == "query"]
    assert len(sources) > 100
    assert all(source == chosen for source in sources)


def test_rows_begin_what_they_name() -> None:
    rows = [panel["title"] for panel in PANELS if panel["type"] == "row"]
    assert rows == ["Overview", "Traffic", "Durability", "Replication", "Storage", "Process"]
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]


def test_what_grafana_is_provided_with() -> None:
    folder = COMPOSE / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    config = yaml.safe_load((COMPOSE / "prometheus.yml").read_text("utf-8"))
    # From it Grafana makes $__rate_interval, which must span some scrapes.
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "kvnode.yml").read_text("utf-8"))["providers"]
    assert provider["type"] == "file"


def test_the_nodes_without_docker_are_scraped_where_they_listen() -> None:
    first_port = re.search(r"^first_http_port=(\d+)$", (COMPOSE / "nodes.sh").read_text("utf-8"), re.MULTILINE)
    assert first_port is not None
    config = yaml.safe_load((COMPOSE / "prometheus-local.yml").read_text("utf-8"))
    (targets,) = [each["targets"] for each in config["scrape_configs"][0]["static_configs"]]
    assert targets == [f"127.0.0.1:{int(first_port[1]) + number}" for number in range(3)]


def test_the_nodes_in_docker_are_scraped_where_they_listen() -> None:
    services = yaml.safe_load((COMPOSE / "docker-compose.yml").read_text("utf-8"))["services"]
    listening = [
        f"{name}:{port.rpartition(':')[2]}"
        for name, service in services.items()
        for port in service.get("ports", ())
        if "_HTTP_PORT" in port
    ]
    config = yaml.safe_load((COMPOSE / "prometheus.yml").read_text("utf-8"))
    (targets,) = [each["targets"] for each in config["scrape_configs"][0]["static_configs"]]
    assert targets == listening == ["web1:5001", "web2:5001", "web3:5001"]

"""The files in compose/ that make use of the metrics: what they ask Prometheus for."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from support.project import ROOT

COMPOSE = ROOT / "compose"


def dashboard() -> dict[str, Any]:
    """The dashboard for Grafana."""
    read: dict[str, Any] = json.loads((COMPOSE / "grafana" / "kvnode.json").read_text("utf-8"))
    return read


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    groups = yaml.safe_load((COMPOSE / "alerts.yml").read_text("utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def expressions_of_alerts() -> dict[str, str]:
    """What each alert asks for, by its name."""
    return {name: rule["expr"] for name, rule in alerts().items()}


def expressions_of_dashboard() -> dict[str, str]:
    """What each query of each panel asks for, by the panel's title and the query's letter; and each variable."""
    found = {
        f"{panel['title']} / {target['refId']}": target["expr"]
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    }
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            call = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            assert call is not None, variable
            found[f"${variable['name']}"] = call[1]
    return found

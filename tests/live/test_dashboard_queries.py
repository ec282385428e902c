"""Every query of the dashboard on a real Prometheus: each is understood, and has data.

``PROMETHEUS_URL=http://127.0.0.1:9095 make live``, where that Prometheus has watched an application for some minutes in
which everything happened at least once: a failover, a broken answer continued, a setting that is wrong.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import httpx
import pytest
from support import LIVE, ROOT

DASHBOARD = json.loads((ROOT / "compose/monitoring/grafana/dashboards/learnflow-llm.json").read_text(encoding="utf-8"))
PROMETHEUS = LIVE.get("PROMETHEUS_URL", "")
MINUTES = int(LIVE.get("PROMETHEUS_MINUTES", "15"))
# What Grafana puts in place of its variables, the longest name first.
VARIABLES = {
    "$__rate_interval": "75s",
    "$__interval_ms": "60000",
    "$__interval": "60s",
    "$__range": f"{MINUTES}m",
    "$provider": ".*",
}
QUERIES = [
    pytest.param(target, id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
]

pytestmark = [pytest.mark.live, pytest.mark.skipif(not PROMETHEUS, reason="PROMETHEUS_URL names no Prometheus")]


def ask(path: str, **parameters: str) -> Any:
    answer = httpx.post(f"{PROMETHEUS}/api/v1/{path}", data=parameters, timeout=30, trust_env=False)
    said = answer.json()
    assert said["status"] == "success", said
    return said["data"]


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


@pytest.mark.parametrize("target", QUERIES)
def test_every_query_has_data(target: dict[str, Any]) -> None:
    expression, now = filled(target["expr"]), time.time()
    if target["instant"]:
        found = ask("query", query=expression)["result"]
        values = [float(series["value"][1]) for series in found]
    else:
        begin = str(now - 60 * MINUTES)
        found = ask("query_range", query=expression, start=begin, end=str(now), step="60")["result"]
        values = [float(value) for series in found for _, value in series["values"]]
    assert any(not math.isnan(value) for value in values), expression


def test_the_variable_has_providers() -> None:
    query = DASHBOARD["templating"]["list"][0]["query"]["query"]
    selector, _, label = query.removeprefix("label_values(").removesuffix(")").rpartition(", ")
    answer = httpx.get(f"{PROMETHEUS}/api/v1/label/{label}/values", params={"match[]": selector}, trust_env=False)
    assert answer.json()["data"]

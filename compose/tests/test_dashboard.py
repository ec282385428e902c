"""The Grafana dashboard, checked without Grafana. tests/live queries a real Prometheus."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from prometheus_client import CollectorRegistry
from support import ROOT

from learnflow.llm import errors
from learnflow.llm.events import ContinuationEnded
from learnflow.llm.integrations.prometheus import Metrics
from learnflow.llm.routing.decision import is_provider_failure

MONITORING = ROOT / "compose/monitoring"
DASHBOARD: dict[str, Any] = json.loads(
    (MONITORING / "grafana/dashboards/learnflow-llm.json").read_text(encoding="utf-8")
)
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TITLES = [panel["title"] for panel in PANELS]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
# The names and labels of the exported metrics.
METRICS = {
    name.removeprefix("learnflow_llm_"): set(labels)
    for name, labels in Metrics(CollectorRegistry()).label_names.items()
}
SECONDS = {name for name in METRICS if name.endswith("_seconds")}


def named(text: str) -> set[str]:
    """Return the metrics of a query, with the parts of histograms."""
    names = set(re.findall(r"learnflow_llm_(\w+)", text))
    parts = {name: re.sub(r"_(bucket|count|sum)$", "", name) for name in names}
    for part, name in parts.items():
        assert (part != name) == (name in SECONDS), part
    return set(parts.values())


def expressions(title: str) -> str:
    return " ".join(target["expr"] for panel in PANELS if panel["title"] == title for target in panel["targets"])


def test_dashboard_shows_exactly_exported_metrics() -> None:
    assert named(" ".join(EXPRESSIONS)) == set(METRICS)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_queries_use_existing_labels(expression: str) -> None:
    has = set.intersection(*(METRICS[name] for name in named(expression)))
    for name, selector in re.findall(r"learnflow_llm_(\w+)\{([^}]*)\}", expression):
        labels = set(re.findall(r"(\w+)[!=]~?\"", selector))
        assert labels <= METRICS[re.sub(r"_(bucket|count|sum)$", "", name)], name
        assert labels & {"provider", "from"}, "the dashboard's variable chooses"
    for labels in re.findall(r"by \(([^)]*)\)", expression):
        assert set(labels.split(", ")) <= has | {"le"}
    assert expression.count("(") == expression.count(")")


def test_queries_in_documents_use_existing_labels() -> None:
    text = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    queries = [line for block in re.findall(r"```promql\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert {name for query in queries for name in named(query)} == {"tokens_total", "cost_dollars_total"}
    for query in queries:
        (name,) = named(query)
        assert set(re.findall(r"by \(([^)]*)\)", query)[0].split(", ")) <= METRICS[name]
    table = re.findall(r"^\| `learnflow_llm_(\w+)` \| ([^|]*) \|", text, re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in table} == METRICS


@pytest.mark.parametrize(
    ("title", "metric"),
    [
        ("Providers in use", "requests_total"),
        ("Failover time", "failover_seconds"),
        ("Failovers by reason", "failovers_total"),
        ("Success rate of health checks", "health_checks_total"),
        ("Time to first token", "first_token_seconds"),
        ("Duration of successful attempts", "request_seconds"),
        ("Circuit breakers", "breaker_open"),
    ],
)
def test_required_metrics_have_panels(title: str, metric: str) -> None:
    assert TITLES.count(title) == 1
    assert named(expressions(title)) == {metric}


@pytest.mark.parametrize(
    "title", ["Failover time", "Time to first token", "Duration of successful attempts", "Time in the queue"]
)
def test_time_panels_show_median_and_p95(title: str) -> None:
    assert re.findall(r"histogram_quantile\((0\.\d+)", expressions(title)) == ["0.5", "0.95"]


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_every_panel_has_description(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == panel["datasource"]["uid"]
        assert target["instant"] != target["range"]
        # a panel shows either the whole range or one moment
        assert ("$__range" in target["expr"]) <= target["instant"]


def test_colours_of_continuations_name_outcomes() -> None:
    (panel,) = (panel for panel in PANELS if "learnflow_llm_continuations_ended_total" in str(panel["targets"]))
    coloured = re.findall(r"'/(\w+)\$/'", str(panel["fieldConfig"]["overrides"]))
    assert coloured
    assert set(coloured) <= set(get_args(get_type_hints(ContinuationEnded)["outcome"]))


def test_panels_do_not_overlap() -> None:
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    assert len(set(TITLES)) == len(TITLES)
    for one, other in combinations([panel["gridPos"] for panel in every], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in every)


def test_grafana_is_provisioned_with_data_source_and_dashboard() -> None:
    provisioning = MONITORING / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text(encoding="utf-8"))["datasources"]
    (folder,) = yaml.safe_load((provisioning / "dashboards/learnflow.yml").read_text(encoding="utf-8"))["providers"]
    (variable,) = DASHBOARD["templating"]["list"]
    assert {panel["datasource"]["uid"] for panel in [*PANELS, variable]} == {source["uid"]}
    grafana = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["grafana"]
    assert f"./compose/monitoring/grafana/dashboards:{folder['options']['path']}:ro" in grafana["volumes"]
    prometheus = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def test_caller_errors_do_not_count_as_provider_failures() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LLMError)]
    leaves = {kind.__name__ for kind in kinds if not kind.__subclasses__() and not is_provider_failure(kind("x"))}
    shares = {
        outcomes for outcomes in re.findall(r'outcome!~"([^"]*)', " ".join(EXPRESSIONS)) if "InvalidRequest" in outcomes
    }
    assert [set(share.split("|")) for share in shares] == [leaves | {"stop", "length", "tool_calls", "cancelled"}]


ALERTS = [
    pytest.param(rule, id=rule["alert"])
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


@pytest.mark.parametrize("rule", ALERTS)
def test_alerts_use_exported_metrics_and_have_description(rule: dict[str, Any]) -> None:
    (name,) = named(rule["expr"])
    for labels in re.findall(r"by \(([^)]*)\)", rule["expr"]):
        assert set(labels.split(", ")) <= METRICS[name]
    assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= METRICS[name]
    assert set(re.findall(r"(\w+)=~", rule["expr"])) <= METRICS[name]
    for outcome in re.findall(r"[A-Z]\w+", "|".join(re.findall(r'outcome=~"([^"]*)"', rule["expr"]))):
        assert issubclass(getattr(errors, outcome), errors.LLMError)
    assert {"summary", "action"} == set(rule["annotations"])


def test_promtool_accepts_alerts() -> None:
    assert yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))["rule_files"] == ["alerts.yml"]

"""The Grafana dashboard: what it asks for is what the proxy counts."""

import json
import re
from pathlib import Path

from proxy.metrics import METRICS, Kind

DASHBOARD = json.loads((Path(__file__).parents[2] / "deploy/grafana-dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
SHOWN = {metric.name + ("_bucket" if metric.kind is Kind.HISTOGRAM else ""): metric for metric in METRICS}


def test_every_metric_on_it_exists_and_has_the_labels_it_is_asked_by() -> None:
    task = next(each["query"] for each in DASHBOARD["templating"]["list"] if each["name"] == "task")
    for query in [*QUERIES, task]:
        names = re.findall(r"stillroom_\w+", query)
        assert names
        known = {label for name in names for label in SHOWN[name].labels} | {"le"}
        matched = re.findall(r'(\w+)(?:=|!=|=~|!~)"', query)
        grouped = [label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")]
        assert set(matched) | set(grouped) <= known, query


def test_counters_are_asked_for_their_rate_and_gauges_for_their_value() -> None:
    for query in QUERIES:
        for name in re.findall(r"stillroom_\w+", query):
            counted = SHOWN[name].kind in (Kind.COUNTER, Kind.HISTOGRAM)
            assert bool(re.search(rf"(rate|increase)\({name}\b", query)) == counted, query


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            kept = [label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= set(kept), target


def test_panels_do_not_lie_on_each_other_and_each_query_has_a_name_of_its_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    for panel in DASHBOARD["panels"]:
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)

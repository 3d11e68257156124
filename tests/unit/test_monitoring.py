"""Dashboard and alert rules: metrics that exist in the code, alerts that are explained, valid syntax."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.util.metrics import Counter, Gauge, Histogram

import ray_jobs.telemetry
import serve.telemetry
from infra.promql import dashboard_queries, exposed_metrics, metric_names, rule_queries

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "infra/grafana/facereel.json"
RULES = ROOT / "infra/prometheus/rules.yml"
OPERATIONS = ROOT / "docs/operations.md"
# Beside Prometheus on the path, or where the local stack has unpacked it.
PROMTOOL = shutil.which("promtool", path=f"{os.environ['PATH']}:{ROOT}/runs/stack/debian/usr/bin")
SUFFIXES = {Counter: ("_total",), Gauge: ("",), Histogram: ("_bucket", "_sum", "_count")}


def declared() -> set[str]:
    """Series of all metrics that jobs and service make."""
    return {
        f"ray_{metric.info['name']}{suffix}"
        for metrics in (ray_jobs.telemetry.metrics(), serve.telemetry.metrics())
        for metric in vars(metrics).values()
        for suffix in SUFFIXES[type(metric)]
    }


def named() -> set[str]:
    return {
        name
        for queries in (dashboard_queries(DASHBOARD), rule_queries(RULES))
        for expression in queries.values()
        for name in metric_names(expression)
    }


def test_queries_name_only_metrics_that_the_code_makes() -> None:
    own = {name for name in named() if name.startswith("ray_facereel_")}
    assert own
    assert own <= declared()


def test_every_metric_of_a_job_stands_in_the_dashboard() -> None:
    queries = dashboard_queries(DASHBOARD).values()
    shown = {name for expression in queries for name in metric_names(expression)}
    jobs = {f"ray_{metric.info['name']}" for metric in vars(ray_jobs.telemetry.metrics()).values()}
    assert jobs <= {name.removesuffix("_total") for name in shown}


def test_every_alert_says_what_it_is_and_docs_what_to_do() -> None:
    explained = re.findall(r"^\| `(\w+)` \| (?:page|ticket) \|", OPERATIONS.read_text(), re.MULTILINE)
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [rule["alert"] for rule in rules] == explained
    for rule in rules:
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_every_metric_is_explained() -> None:
    text = OPERATIONS.read_text()
    for metrics in (ray_jobs.telemetry.metrics(), serve.telemetry.metrics()):
        for metric in vars(metrics).values():
            assert f"`{metric.info['name']}`" in text


def test_panels_do_not_overlap() -> None:
    places: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & places, panel["title"]
        places |= cells


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("file", ["rules", "dashboard"])
def test_prometheus_takes_every_query(file: str, tmp_path: Path) -> None:
    rules = RULES
    if file == "dashboard":  # each query as a rule: promtool checks no others
        queries = [query.replace("$__rate_interval", "1m") for query in dashboard_queries(DASHBOARD).values()]
        records = [{"record": "of_a_panel", "expr": query.replace("$__range", "1h")} for query in queries]
        groups = [{"name": f"panel-{number}", "rules": [record]} for number, record in enumerate(records)]
        rules = tmp_path / "dashboard.yml"
        rules.write_text(yaml.safe_dump({"groups": groups}))
    done = subprocess.run([str(PROMTOOL), "check", "rules", rules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("up", {"up"}),
        ('up{job="ray"} == 0', {"up"}),
        ("sum by (run) (a_total) / on(run) group_left(task) b:c", {"a_total", "b:c"}),
        ("histogram_quantile(0.95, sum by (le, route) (rate(x_bucket[$__rate_interval])))", {"x_bucket"}),
        ('a{reason=~"b{2}|c",d!=""} unless a offset 15m', {"a"}),
        ("1000 * sum(rate(cost[30m] offset 1d)) without (x) > bool 1e3", {"cost"}),
        ("max_over_time(rate(deep[5m])[1h:1m])", {"deep"}),
        ('label_replace(m, "new", "$1", "old", "(.*)")', {"m"}),
        ("sum(a) and b or c", {"a", "b", "c"}),
        ("vector(1)", set()),
    ],
)
def test_names_in_an_expression(expression: str, names: set[str]) -> None:
    assert metric_names(expression) == names


WORDS = st.sampled_from(["requests", "by_total", "sum_x", "on1", "rate5m", "a:b"])


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_every_name_in_a_sum_of_rates_is_found(names: list[str]) -> None:
    expression = " + ".join(f'sum by (label) (rate({name}{{x="y"}}[5m]))' for name in names)
    assert metric_names(expression) == set(names)


def test_names_in_an_exposition() -> None:
    text = '# HELP a_total what\n# TYPE a_total counter\na_total{x="y z"} 1.0\nb 2\nc_bucket{le="+Inf"} 3\n'
    assert exposed_metrics(text) == {"a_total", "b", "c_bucket"}

"""Dashboard and alert rules: metrics that exist in the code, alerts that are explained, valid syntax."""

import json
import re
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
from infra.stack.programs import prometheus_program
from infra.stack.state import StackFolder

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "infra/grafana/facereel.json"
RULES = ROOT / "infra/prometheus/rules.yml"
OPERATIONS = ROOT / "docs/operations.md"
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


@pytest.fixture(scope="module")
def promtool() -> Path:
    """Prometheus' own, from the path or from where `make` has unpacked it."""
    found = prometheus_program("promtool", StackFolder(ROOT / "runs" / "stack").debian)
    if found is None:
        pytest.skip("promtool is neither on the path nor unpacked: python -m infra.stack fetch")
    return found


def run(promtool: Path, *words: str | Path) -> None:
    done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["prometheus.yml", "kubernetes.yml"])
def test_prometheus_takes_the_configuration(name: str, promtool: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(RULES.with_name(name).read_text())
    for job in config["scrape_configs"]:
        job.pop("kubernetes_sd_configs", None)  # Debian's Prometheus is built without it
    (tmp_path / RULES.name).write_bytes(RULES.read_bytes())
    (tmp_path / name).write_text(yaml.safe_dump(config))
    run(promtool, "check", "config", tmp_path / name)
    assert "ray" in [job["job_name"] for job in config["scrape_configs"]], "rules and dashboard ask for it"


def test_prometheus_finds_what_the_manifests_make() -> None:
    from tests.kuberay import clusters
    from tests.manifests import render

    (job,) = yaml.safe_load(RULES.with_name("kubernetes.yml").read_text())["scrape_configs"]
    (found,) = job["kubernetes_sd_configs"]
    (port,) = [rule["regex"] for rule in job["relabel_configs"] if rule["source_labels"][0].endswith("port_name")]
    for folder in ("ray", "score", "train", "serve"):
        (resource,) = [one for one in render(folder) if one["apiVersion"] == "ray.io/v1"]
        assert found["namespaces"]["names"] == [resource["metadata"]["namespace"]]
        cluster = clusters(resource)
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            (container,) = group["template"]["spec"]["containers"]
            assert {"name": port, "containerPort": 8080} in container[
                "ports"
            ]  # the one that the network policies let in


@pytest.mark.parametrize("file", ["rules", "dashboard"])
def test_prometheus_takes_every_query(file: str, promtool: Path, tmp_path: Path) -> None:
    rules = RULES
    if file == "dashboard":  # each query as a rule: promtool checks no others
        queries = [query.replace("$__rate_interval", "1m") for query in dashboard_queries(DASHBOARD).values()]
        records = [{"record": "of_a_panel", "expr": query.replace("$__range", "1h")} for query in queries]
        groups = [{"name": f"panel-{number}", "rules": [record]} for number, record in enumerate(records)]
        rules = tmp_path / "dashboard.yml"
        rules.write_text(yaml.safe_dump({"groups": groups}))
    run(promtool, "check", "rules", rules)


# What the metrics say when all is well, a value a minute; and what must change for each alert, which then fires alone.
WELL = {
    'ray_facereel_score_waiting{run="a"}': "1000-1x200",
    'ray_facereel_score_videos_total{status="scored"}': "0+600x200",
    'ray_facereel_score_videos_total{status="quarantined"}': "0+6x200",
    'ray_facereel_score_quarantined_total{reason="truncated"}': "0+6x200",
    'ray_facereel_score_quarantined_total{reason="access_denied"}': "0+0x200",
    'ray_facereel_score_quarantined_total{reason="storage_timeout"}': "0+0x200",
    'ray_facereel_score_commit_lag_seconds{run="a"}': "30+0x200",
    'ray_facereel_score_busy_seconds_total{stage="predict",device="cuda"}': "0+100x200",
    'ray_facereel_score_slots{run="a",stage="predict",device="cuda"}': "2+0x200",
    'ray_facereel_score_backlog{run="a",task="fs2k",state="done"}': "900+0x200",
    'ray_facereel_score_backlog{run="a",task="fs2k",state="stale_scorer"}': "100+0x200",
    'ray_facereel_score_cost_total{resource="gpu"}': "0+0.1x200",
    'ray_facereel_train_reader_wait_share{run="b",task="fs2k"}': "0.1+0x200",
    'ray_facereel_ready{WorkerId="a"}': "1+0x200",
    'ray_facereel_ready{WorkerId="b"}': "1+0x200",
    'ray_facereel_requests_total{route="/v1/images:score",status="200"}': "0+600x200",
    'ray_facereel_requests_total{route="/v1/images:score",status="500"}': "0+0x200",
    'ray_facereel_requests_total{route="/v1/images:score",status="429"}': "0+6x200",
    'ray_facereel_requests_total{route="/readyz",status="503"}': "0+60x200",
    'ray_facereel_request_seconds_bucket{route="/v1/images:score",le="0.1"}': "0+590x200",
    'ray_facereel_request_seconds_bucket{route="/v1/images:score",le="10"}': "0+600x200",
    'ray_facereel_request_seconds_bucket{route="/v1/images:score",le="+Inf"}': "0+600x200",
    'ray_facereel_models_refused_total{task="fs2k",role="champion"}': "0.000000001+0x200",
    'up{job="ray",instance="one"}': "1+0x200",
    'ray_node_disk_utilization_percentage{instance="one"}': "50+0x200",
    'ray_node_mem_used{instance="one"}': "50+0x200",
    'ray_node_mem_total{instance="one"}': "100+0x200",
}
FIRES = {
    "ScoringStalled": {
        'ray_facereel_score_videos_total{status="scored"}': "0+600x100 60000+0x100",
        'ray_facereel_score_videos_total{status="quarantined"}': "0+6x100 600+0x100",
    },
    "CommitLagging": {'ray_facereel_score_commit_lag_seconds{run="a"}': "400+0x200"},
    "ManyQuarantined": {'ray_facereel_score_videos_total{status="quarantined"}': "0+300x200"},
    "StorageRefuses": {'ray_facereel_score_quarantined_total{reason="storage_timeout"}': "0+6x200"},
    "PredictorsIdle": {'ray_facereel_score_busy_seconds_total{stage="predict",device="cuda"}': "0+20x200"},
    "StaleBacklog": {'ray_facereel_score_backlog{run="a",task="fs2k",state="stale_scorer"}': "400+0x200"},
    "ScoringExpensive": {'ray_facereel_score_cost_total{resource="gpu"}': "0+1x200"},
    "TrainingWaitsForData": {'ray_facereel_train_reader_wait_share{run="b",task="fs2k"}': "0.6+0x200"},
    "ServiceNotReady": {'ray_facereel_ready{WorkerId="b"}': "0+0x200"},
    "ServiceGone": {f'ray_facereel_ready{{WorkerId="{one}"}}': "1+0x150" for one in "ab"},
    "ServiceFails": {'ray_facereel_requests_total{route="/v1/images:score",status="500"}': "0+12x200"},
    "ServiceOverloaded": {'ray_facereel_requests_total{route="/v1/images:score",status="429"}': "0+60x200"},
    "ServiceSlow": {'ray_facereel_request_seconds_bucket{route="/v1/images:score",le="0.1"}': "0+10x200"},
    "ModelRefused": {'ray_facereel_models_refused_total{task="fs2k",role="champion"}': "0.000000001+0x175 1+0x25"},
    "NodeDown": {'up{job="ray",instance="one"}': "0+0x200"},
    "NodeDiskFull": {'ray_node_disk_utilization_percentage{instance="one"}': "92+0x200"},
    "NodeMemoryFull": {'ray_node_mem_used{instance="one"}': "95+0x200"},
}


def test_every_alert_is_tried() -> None:
    assert set(rule_queries(RULES)) == set(FIRES)
    assert {name.partition("{")[0] for name in WELL} == {
        name for expression in rule_queries(RULES).values() for name in metric_names(expression)
    }
    assert all(changes.keys() <= WELL.keys() for changes in FIRES.values())


@pytest.mark.parametrize("alert", [None, *FIRES])
def test_an_alert_fires_when_it_should_and_no_other_does(alert: str | None, promtool: Path, tmp_path: Path) -> None:
    series = WELL | FIRES.get(str(alert), {})
    fires = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else []
    asked = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "180m", "exp_samples": fires}
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [asked],
            }
        ],
    }
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump(tests))
    run(promtool, "test", "rules", file)


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

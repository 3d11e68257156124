"""The dashboard's queries put to a Prometheus: what stands in for the picture where there is no Grafana."""

import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infra.promql import dashboard_queries

DASHBOARD = Path(__file__).resolve().parents[1] / "grafana" / "facereel.json"

# Labels that Ray and Prometheus set on every series, which tell nothing here.
_OWN = (
    *("__name__", "Component", "IsHeadNode", "Node", "RayNodeType", "Session", "Version", "WorkerId"),
    *("ip", "job", "otel_"),
)


class Answer(BaseModel):
    """One series of a query, over the time asked for."""

    labels: dict[str, str]
    last: float
    least: float
    most: float


def ask(address: str, path: str, **parameters: str) -> Any:
    """The data of an answer of Prometheus' HTTP API.

    Raises:
        urllib.error.HTTPError: It refuses the query.
    """
    url = f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]


def answers(address: str, expression: str, seconds: float) -> list[Answer]:
    """What a dashboard's query answers over the last seconds, a point every ten of them; values that are none go."""
    for variable, value in (("$__rate_interval", "1m"), ("$__range", f"{seconds:.0f}s")):
        expression = expression.replace(variable, value)
    now = time.time()
    data = ask(address, "query_range", query=expression, start=str(now - seconds), end=str(now), step="10")
    found = []
    for series in data["result"]:
        values = [float(value) for _, value in series["values"] if value != "NaN"]
        if values:
            found.append(Answer(labels=series["metric"], last=values[-1], least=min(values), most=max(values)))
    return found


def print_answers(address: str, seconds: float) -> None:
    """Each query of the dashboard with its series."""
    for name, expression in dashboard_queries(DASHBOARD).items():
        print(f"{name}: {expression}")
        found = answers(address, expression, seconds)
        for one in found:
            labels = " ".join(f"{key}={value}" for key, value in sorted(one.labels.items()) if not key.startswith(_OWN))
            print(f"    {labels or 'all':<50} last {one.last:.4g}  least {one.least:.4g}  most {one.most:.4g}")
        if not found:
            print("    (nothing)")

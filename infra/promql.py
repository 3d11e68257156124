"""Which metrics a PromQL expression names, and all expressions of dashboards and rules: what a test compares."""

import json
import re
from pathlib import Path

import yaml

_WORDS = """sum min max avg group stddev stdvar count count_values bottomk topk quantile by without on ignoring
group_left group_right bool and or unless offset start end inf nan"""
_KEYWORDS = frozenset(_WORDS.split())
# In this order: what stands in quotes, in braces or in brackets is no metric; nor are the labels of a grouping.
_NOT_NAMES = (
    r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|`[^`]*`',
    r"\{[^}]*\}",
    r"\[[^\]]*\]",
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)",
    r"\b\d[\w.]*",
)
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\(|[a-zA-Z0-9_:])")


def metric_names(expression: str) -> set[str]:
    """The metrics that an expression reads: its names that are neither functions, operators nor labels.

    A metric that stands only as ``{__name__="…"}`` is not found: do not write it so.
    """
    for pattern in _NOT_NAMES:
        expression = re.sub(pattern, " ", expression)
    return {name for name in _NAME.findall(expression) if name.lower() not in _KEYWORDS}


def dashboard_queries(path: Path) -> dict[str, str]:
    """Each query of a Grafana dashboard by ``panel's title/letter``."""
    found = {}
    panels = json.loads(path.read_text())["panels"]
    for panel in [*panels, *(inner for row in panels for inner in row.get("panels", []))]:
        for target in panel.get("targets", []):
            found[f"{panel['title']}/{target['refId']}"] = target["expr"]
    return found


def rule_queries(path: Path) -> dict[str, str]:
    """Each expression of a file of Prometheus rules, by the name of its alert or record."""
    groups = yaml.safe_load(path.read_text())["groups"]
    return {rule.get("alert") or rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


def exposed_metrics(exposition: str) -> set[str]:
    """Names of the series in a text that Prometheus scrapes."""
    return set(re.findall(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)[{ ]", exposition, re.MULTILINE))

"""The doctor's round: this machine, the cluster, the stores; then the report."""

import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.table import Table

from infra.settings import Settings
from infra.storage import Storage, is_s3
from infra.tracking import shown_uri
from ray_jobs.cluster import named_address
from ray_jobs.console import console
from ray_jobs.diagnosing.findings import Finding, exit_code, guarded, ok, warn
from ray_jobs.diagnosing.judging import (
    judge_disks,
    judge_gpu,
    judge_gpus_wanted,
    judge_nvdec,
    judge_packages,
    judge_ports,
    judge_python,
    judge_reach,
    judge_shm,
    judge_stop,
    read_pins,
)
from ray_jobs.diagnosing.node import address_of, gather, is_free
from ray_jobs.diagnosing.stores import (
    GRANTS,
    check_delta,
    check_listing,
    check_mlflow,
    check_objects,
    check_server_clock,
)
from ray_jobs.job_environment import STOP_WAIT, is_submitted

LOCK = Path("requirements.lock")
PORTS = {8000: "the service", 8265: "Ray's dashboard", 6379: "Ray's head", 5000: "an MLflow server"}


@dataclass(frozen=True, slots=True)
class Examination:
    """What to look at."""

    tables: str | None = None
    catalog: str | None = None
    address: str | None = None  # of a dashboard, to compare versions with
    gpu: bool = False


def examine(what: Examination, settings: Settings) -> list[Finding]:
    """Every check, in the order in which they build on each other."""
    pins = read_pins(LOCK.read_text()) if LOCK.is_file() else {}
    tracking, endpoint = settings.tracking.uri, _endpoint(settings, what)
    addresses = [found for found in (address_of(tracking), address_of(endpoint)) if found]
    own = gather(pins, addresses)
    findings = [
        judge_python(own),
        judge_packages(own, pins),
        judge_disks(own.disks),
        judge_shm(own),
        judge_gpu(own.gpus, num_of_ray=None),
        judge_nvdec(own.gpus),
        *judge_reach(own),
    ]
    if is_submitted():
        findings.append(judge_stop(os.environ.get(STOP_WAIT)))
    if what.address is not None:
        findings += guarded("job api", "see docs/cluster.md about address and token", lambda: _job_api(what.address))
    if named_address(settings.cluster):
        from ray_jobs.diagnosing.cluster import examine as examine_cluster

        findings += guarded(
            "cluster",
            "correct cluster.address, let the head run, and give its token (RAY_AUTH_TOKEN)",
            lambda: examine_cluster(settings, pins, addresses, own, gpu_wanted=what.gpu),
        )
    else:
        findings.append(ok("cluster", "none named: this machine alone (submit doctor … looks at a cluster's nodes)"))
        findings += judge_ports({port: is_free(port) for port in PORTS}, PORTS)
        if what.gpu:
            findings.append(judge_gpus_wanted(len(own.gpus.names), wanted=True))
    findings += _stores(what, settings, endpoint)
    return findings


def _stores(what: Examination, settings: Settings, endpoint: str | None) -> list[Finding]:
    storage, tables, catalog = Storage(settings.storage), what.tables, what.catalog
    findings = []
    if catalog is not None:
        fix = "correct --catalog, and grant list and get on it"
        findings += guarded("catalog", fix, lambda: check_listing(storage, catalog))
    if tables is not None:
        findings += guarded("storage", f"{tables}: {GRANTS}", lambda: check_objects(storage, tables))
        findings += guarded("delta", f"{tables}: {GRANTS}", lambda: check_delta(storage, tables))
    else:
        findings.append(warn("storage", "not looked at", "name the root of the tables: --tables s3://bucket/prefix"))
    if endpoint is not None:
        findings += guarded(
            "clock", "correct storage.endpoint_url", lambda: check_server_clock("object storage", endpoint)
        )
    findings += guarded(
        "mlflow",
        f"correct tracking.uri ({shown_uri(settings.tracking.uri)}), start its server, or give its credentials",
        lambda: check_mlflow(settings.tracking),
    )
    if address_of(settings.tracking.uri) is not None:
        uri = settings.tracking.uri
        findings += guarded("clock", "correct tracking.uri", lambda: check_server_clock("MLflow", uri))
    return findings


def _endpoint(settings: Settings, what: Examination) -> str | None:
    """Where requests to storage go; None where all is local."""
    if not any(uri is not None and is_s3(uri) for uri in (what.tables, what.catalog)):
        return None
    return settings.storage.endpoint_url or f"https://s3.{settings.storage.region or 'us-east-1'}.amazonaws.com"


def _job_api(address: str | None) -> Finding:
    from ray_jobs.submitting.job import check_version, connect_to_jobs

    own = version("ray")
    note = check_version(connect_to_jobs(address), own)
    if note is not None:
        return warn("job api", note, "use one version everywhere")
    return ok("job api", f"{address}: answers, takes the token, Ray {own} as here")


def print_findings(findings: list[Finding], *, as_json: bool) -> int:
    """The report; the exit code."""
    code = exit_code(findings)
    if as_json:
        print(json.dumps({"ok": code == 0, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return code
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("level")
    table.add_column("name", overflow="fold")
    table.add_column("message", overflow="fold")
    for finding in findings:
        mend = f"\n→ {finding.fix}" if finding.fix else ""
        table.add_row(finding.level, finding.name, finding.message + mend, style=colours[finding.level])
    console.print(table)
    counts = {level: sum(finding.level == level for finding in findings) for level in ("ok", "warn", "fail")}
    console.print(", ".join(f"{number} {level}" for level, number in counts.items()), highlight=False)
    return code

"""KubeRay's resources checked offline: the fields by a schema, and the rules that its operator applies on top."""

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from packaging.version import InvalidVersion, Version
from referencing import Registry, Resource

KUBERNETES = "1.37.0"
SCHEMA = Path(__file__).with_name("kuberay_schema.yaml")
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035, as KubeRay wants the names of its resources
MAX_NAME = {"RayCluster": 63, "RayJob": 47, "RayService": 47}
AUTH_SINCE = Version("2.52.0")
RAY_START_RESOURCES = {"num-cpus", "num-gpus", "memory", "resources"}


@cache
def _validator() -> Draft202012Validator:
    """The schema, its ``k8s:Name`` pointed at Kubernetes' own definitions (strict: unknown fields are errors)."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())
    full = {name.rsplit(".", 1)[1]: name for name in definitions["$defs"] if ".core.v1." in name or ".meta.v1." in name}
    text = re.sub(
        r"k8s:(\w+)", lambda match: f"{definitions['$id']}#/$defs/{full[match[1]]}", SCHEMA.read_text(encoding="utf-8")
    )
    return Draft202012Validator(yaml.safe_load(text), registry=Resource.from_contents(definitions) @ Registry())


def problems(resource: dict[str, Any]) -> list[str]:
    """What the API server's schema or KubeRay's operator would refuse in a RayCluster, RayJob or RayService."""
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in _validator().iter_errors(resource)
    ]
    return found or [*_name(resource), *_spec(resource)]


def clusters(resource: dict[str, Any]) -> dict[str, Any]:
    """The spec of the cluster that a resource makes."""
    spec = resource["spec"]
    field = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}[resource["kind"]]
    found: dict[str, Any] = spec if field is None else spec[field]
    return found


def _name(resource: dict[str, Any]) -> list[str]:
    name, most = resource["metadata"]["name"], MAX_NAME[resource["kind"]]
    if len(name) > most or not DNS_LABEL.fullmatch(name):
        return [f"metadata.name: {name!r} is no DNS label of at most {most} characters"]
    return []


def _spec(resource: dict[str, Any]) -> list[str]:
    found = {"RayCluster": lambda _: [], "RayJob": _job, "RayService": _service}[resource["kind"]](resource["spec"])
    if resource["kind"] == "RayJob" and "rayClusterSpec" not in resource["spec"]:
        return found
    cluster = clusters(resource)
    if resource["kind"] != "RayCluster" and "upgradeStrategy" in cluster:
        found.append("upgradeStrategy: not in a cluster that a RayJob or RayService makes")
    return found + _cluster(cluster, is_owned=resource["kind"] != "RayCluster")


def _job(spec: dict[str, Any]) -> list[str]:
    found = []
    selects = bool(spec.get("clusterSelector"))
    mode = spec.get("submissionMode", "K8sJobMode")
    if not selects and "rayClusterSpec" not in spec:
        found.append("one of rayClusterSpec and clusterSelector is needed")
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        found.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    if spec.get("suspend") and (selects or not spec.get("shutdownAfterJobFinishes")):
        found.append("suspend needs shutdownAfterJobFinishes and no clusterSelector")
    if spec.get("backoffLimit") and (selects or mode == "InteractiveMode"):
        found.append("backoffLimit goes neither with clusterSelector nor with InteractiveMode")
    if mode == "SidecarMode" and (selects or "submitterPodTemplate" in spec or "submitterConfig" in spec):
        found.append("SidecarMode has no submitter of its own and no clusterSelector")
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        found.append("runtimeEnvYAML is no YAML mapping")
    return found


def _service(spec: dict[str, Any]) -> list[str]:
    head, *_ = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    if "serveService" not in spec and "serve" not in {port.get("name") for port in head.get("ports", [])}:
        # Of the head, although the service's traffic goes to workers: the Kubernetes service is made from it.
        return ["the head's container names no port serve: without it there is no Kubernetes service"]
    return []


def _cluster(spec: dict[str, Any], *, is_owned: bool) -> list[str]:
    found = []
    auth = spec.get("authOptions", {"mode": "disabled"})
    if auth.get("mode", "token") == "token":
        try:
            is_old = Version(spec.get("rayVersion", "")) < AUTH_SINCE
        except InvalidVersion:
            is_old = True
        if is_old:
            found.append(f"authOptions: token needs rayVersion {AUTH_SINCE} or newer")
    if auth.get("enableK8sTokenAuth") and (is_owned or "secretName" in auth):
        found.append("authOptions.enableK8sTokenAuth goes with a RayCluster of its own and without secretName")
    scales = spec.get("enableInTreeAutoscaling", False)
    for group in [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]:
        name = group.get("groupName", "head")
        if group.get("resources") and RAY_START_RESOURCES & group["rayStartParams"].keys():
            found.append(f"{name}: resources stand in rayStartParams too")
        if "labels" in group["rayStartParams"]:
            found.append(f"{name}: labels belong in the field labels")
        if group.get("minReplicas", 0) > group.get("maxReplicas", 0):
            found.append(f"{name}: minReplicas is more than maxReplicas")
        if scales and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            found.append(f"{name}: autoscaler v2 wants restartPolicy Never")
    return found

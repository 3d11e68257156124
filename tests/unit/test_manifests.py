"""The manifests: valid by published schemas, understood by the programs that they call, and safe by themselves."""

import copy
import os
import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import kubernetes_validate
import pytest
import yaml

from infra.settings import Settings, load_settings
from tests.command_lines import parse
from tests.kuberay import clusters, problems
from tests.manifests import ROOT, containers, everything, folders, pod_specs, render, walk

RESOURCES = everything()
RAY = [(folder, one) for folder, one in RESOURCES if one["apiVersion"] == "ray.io/v1"]
JOBS = [(folder, one) for folder, one in RAY if one["kind"] == "RayJob"]
SERVICES = [(folder, one) for folder, one in RAY if one["kind"] == "RayService"]
# What docs/kubernetes.md has users make, and the keys that are read.
SECRETS = {
    "facereel-ray-token": {"auth_token"},
    "facereel-storage": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "facereel-api-keys": {"keys"},
    "mlflow-database": {"password"},
}
OTHER_PROGRAMS = {"pg_ctl", "pg_isready"}  # Postgres' own, of its image


def name_of(value: Any) -> str | None:
    return f"{value['kind']}-{value['metadata']['name']}" if isinstance(value, dict) else None


each = pytest.mark.parametrize(("folder", "resource"), RESOURCES, ids=name_of)
each_ray = pytest.mark.parametrize(("folder", "resource"), RAY, ids=name_of)
each_job = pytest.mark.parametrize(("folder", "resource"), JOBS, ids=name_of)
each_service = pytest.mark.parametrize(("folder", "resource"), SERVICES, ids=name_of)


def test_every_part_is_there() -> None:
    assert {"platform", "ray", "score", "train", "serve"} <= set(folders())
    assert {one["kind"] for _, one in RESOURCES} >= {
        "RayCluster",
        "RayJob",
        "RayService",
        "Deployment",
        "StatefulSet",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ServiceAccount",
    }


@each
def test_schema(folder: str, resource: dict[str, Any]) -> None:
    if resource["apiVersion"] == "ray.io/v1":
        assert problems(resource) == []
    else:
        for version in ("1.30", "1.37"):  # the oldest that docs/kubernetes.md promises, and the newest
            kubernetes_validate.validate(resource, version, strict=True)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(resource: dict[str, Any]) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        node: Any = resource
        for part in parents:
            node = node[part]
        node[last] = value

    return change


HEAD = "spec.rayClusterSpec.headGroupSpec"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("spec.entrypont", "x"), "entrypont"),
        (_set("spec.activeDeadlineSeconds", 0), "activeDeadlineSeconds"),
        (_set("spec.submissionMode", "SSHMode"), "SSHMode"),
        (_set("spec.shutdownAfterJobFinishes", False), "shutdownAfterJobFinishes"),
        (_set("spec.clusterSelector", {"ray.io/cluster": "facereel"}), "clusterSelector"),
        (_set("spec.rayClusterSpec.authOptions.mode", "password"), "password"),
        (_set("spec.rayClusterSpec.rayVersion", "2.51.0"), "2.52.0"),
        (_set("spec.rayClusterSpec.upgradeStrategy", {"type": "Recreate"}), "upgradeStrategy"),
        (_set("spec.rayClusterSpec.workerGroupSpecs.0.minReplicas", 99), "maxReplicas"),
        (_set(f"{HEAD}.resources", {"CPU": "1"}), "rayStartParams"),
        (_set(f"{HEAD}.rayStartParams.num-cpus", 0), "string"),
        (_set(f"{HEAD}.template.spec.containers.0.livenessProbe.httpGet.prot", 1), "prot"),
        (_set(f"{HEAD}.template.spec.containers.0.resources.limits.memory", ["8Gi"]), "memory"),
        (_set(f"{HEAD}.template.spec.restartPolicy", "Always"), "restartPolicy"),
        (_set("metadata.name", "Score_1"), "Score_1"),
    ],
)
def test_a_broken_job_is_refused(change: Callable[[dict[str, Any]], None], says: str) -> None:
    job = copy.deepcopy(JOBS[0][1])
    change(job)
    assert any(says in problem for problem in problems(job)), problems(job)


def test_a_service_whose_head_names_no_port_for_it_is_refused() -> None:
    service = copy.deepcopy(SERVICES[0][1])
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["ports"] = [port for port in head["ports"] if port["name"] != "serve"]
    assert any("port serve" in problem for problem in problems(service))


# --- what the manifests call ---


def command_lines() -> list[tuple[str, list[str]]]:
    found = []
    for folder, resource in RESOURCES:
        where = f"{folder}/{resource['kind']}/{resource['metadata']['name']}"
        for node in walk(resource):
            if isinstance(node.get("entrypoint"), str):
                found.append((where, shlex.split(node["entrypoint"])))
            if isinstance(node.get("command"), list):
                found.append((where, [*node["command"], *node.get("args", [])]))
    return found


@pytest.mark.parametrize(("where", "words"), [line for line in command_lines() if line[1][0] not in OTHER_PROGRAMS])
def test_command_lines_parse(where: str, words: list[str]) -> None:
    assert parse(words), f"{where}: no command in {words}"


def test_a_wrong_command_line_does_not_parse() -> None:
    import click
    import typer

    usage_errors = (click.UsageError, typer.BadParameter.__bases__[0])  # typer has a copy of click of its own
    with pytest.raises(usage_errors, match="--predictor"):
        parse(shlex.split("python -m ray_jobs score --catalog a --tables b --predictor 2"))
    with pytest.raises(usage_errors, match="scores"):
        parse(shlex.split("python -m ray_jobs scores"))
    with pytest.raises(usage_errors, match="artifact-destination"):
        parse(shlex.split("mlflow server --artifact-destination s3://a"))


@each_ray
def test_ray_start_knows_the_parameters(folder: str, resource: dict[str, Any]) -> None:
    from ray.scripts.scripts import start

    known = {option.removeprefix("--") for parameter in start.params for option in parameter.opts}
    cluster = clusters(resource)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert set(group["rayStartParams"]) <= known


def settings_in(folder: str) -> dict[str, dict[str, str]]:
    """The variables of each ConfigMap of an overlay's platform."""
    return {one["metadata"]["name"]: one["data"] for one in render(folder) if one["kind"] == "ConfigMap"}


@pytest.mark.parametrize("folder", [folder for folder in folders() if folder.endswith("platform")])
def test_settings_are_known_and_valid(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables: dict[str, str] = {}
    for data in settings_in(folder).values():
        variables |= data
    for node in walk([one for _, one in RESOURCES]):
        name = node.get("name")
        if isinstance(name, str) and name.startswith("FACEREEL_"):
            variables[name] = node.get("value", "1")
    assert sum(name.startswith("FACEREEL_") for name in variables) > 5
    for name in [name for name in os.environ if name.startswith("FACEREEL_")]:
        monkeypatch.delenv(name)
    known = {"FACEREEL_CONFIG"} | {
        f"FACEREEL_{section}__{field}".upper()
        for section, value in Settings.model_fields.items()
        for field in getattr(value.annotation, "model_fields", {})
    }
    assert {name for name in variables if name.startswith("FACEREEL_")} <= known
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings("/dev/null")
    assert settings.tracking.uri == "http://mlflow:5000"


def test_mlflow_lets_in_the_name_that_jobs_use() -> None:
    from mlflow.server.security_utils import is_allowed_host_header, is_health_endpoint

    (server,) = [one for one in render("platform") if one["kind"] == "Deployment"]
    (container,) = server["spec"]["template"]["spec"]["containers"]
    (allowed,) = [word.partition("=")[2] for word in container["command"] if word.startswith("--allowed-hosts=")]
    name = settings_in("platform")["facereel-settings"]["FACEREEL_TRACKING__URI"].removeprefix("http://")
    assert is_allowed_host_header(allowed.split(","), name)
    assert not is_allowed_host_header(allowed.split(","), "rebound.example.com:5000")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):  # the kubelet asks by the pod's address
        assert is_health_endpoint(container[probe]["httpGet"]["path"])


def test_mlflow_has_the_driver_of_its_database() -> None:
    import sqlalchemy

    addresses = [
        variable["value"]
        for resource in render("platform")
        for container in containers(resource)
        for variable in container.get("env", [])
        if variable["name"] == "MLFLOW_BACKEND_STORE_URI"
    ]
    assert len(addresses) == 2
    for address in addresses:
        assert sqlalchemy.create_engine(address).dialect.name == "postgresql"  # it imports the driver


def test_the_service_runs_with_the_environment_of_its_own_command() -> None:
    from serve.__main__ import ENVIRONMENT

    assert settings_in("platform")["facereel-serving"].items() >= ENVIRONMENT.items()


# --- what the manifests name ---


@each
def test_named_things_exist(folder: str, resource: dict[str, Any]) -> None:
    platform = {(one["kind"], one["metadata"]["name"]) for one in render("platform")}
    for node in walk(resource):
        for field in ("configMapRef", "configMapKeyRef"):
            if field in node:
                assert ("ConfigMap", node[field]["name"]) in platform
        if "serviceAccountName" in node:
            assert ("ServiceAccount", node["serviceAccountName"]) in platform
        for reference in (node.get("secretKeyRef"), node.get("secretRef"), node.get("secret")):
            if isinstance(reference, dict):
                name = reference.get("name") or reference["secretName"]
                assert name in SECRETS
                assert reference.get("key") in {None, *SECRETS[name]}


def test_no_secret_stands_in_a_manifest() -> None:
    assert [one for _, one in RESOURCES if one["kind"] == "Secret"] == []
    for _, resource in RESOURCES:
        for node in walk(resource):
            if re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", str(node.get("name", ""))) and "valueFrom" not in node:
                assert "value" not in node, node


def test_no_secret_stands_in_a_command() -> None:
    for where, resource in RESOURCES:
        for container in containers(resource):
            words = " ".join([*container.get("command", []), *container.get("args", [])])
            secret = {one["name"] for one in container.get("env", []) if "secretKeyRef" in one.get("valueFrom", {})}
            assert not secret & set(re.findall(r"\$\((\w+)\)", words)), f"{where}: {container['name']}"


def test_the_guide_makes_every_secret() -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for name, keys in SECRETS.items():
        made = re.search(rf"create secret generic {name} (.*?)(?=kubectl|```)", guide, flags=re.DOTALL)
        assert made, name
        assert all(f"{key}=" in made[1] for key in keys), (name, made[1])


@each
def test_images_are_ours_or_pinned(folder: str, resource: dict[str, Any]) -> None:
    for container in containers(resource):
        image = container["image"]
        if folder.startswith("overlays/"):
            assert re.fullmatch(r"(registry\.example\.com/)?facereel:[\w.-]+|postgres:\d+-\w+", image), image
        else:
            assert image in {"facereel-cpu", "facereel-cuda", "postgres:17-bookworm"}


# --- pods ---


@each
def test_pods_are_restricted(folder: str, resource: dict[str, Any]) -> None:
    for spec in pod_specs(resource):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        if spec.get("serviceAccountName") != "ray-head":
            assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))
    for container in containers(resource):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@each
def test_pods_say_what_they_take(folder: str, resource: dict[str, Any]) -> None:
    for container in containers(resource):
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    for spec in pod_specs(resource):
        for container in spec["containers"]:
            if container["name"] != "ray-job-submitter":  # it ends by itself
                assert container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}


@each_ray
def test_ray_asks_for_the_token_everywhere(folder: str, resource: dict[str, Any]) -> None:
    assert clusters(resource)["authOptions"] == {"mode": "token", "secretName": "facereel-ray-token"}
    for container in containers(resource):
        assert "RAY_AUTH_MODE" not in {one["name"] for one in container.get("env", [])}, "it would win over KubeRay's"


@each_ray
def test_nodes_run_the_ray_of_the_lock(folder: str, resource: dict[str, Any]) -> None:
    locked = re.search(r"^ray(?:\[.*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    assert locked is not None
    assert clusters(resource)["rayVersion"] == locked[1]


@each_ray
def test_the_autoscaler_reads_the_groups(folder: str, resource: dict[str, Any]) -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config

    cluster = {"metadata": resource["metadata"], "spec": clusters(resource)}
    types = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    for name, node in types.items():
        is_gpu = name == "gpu"
        assert ("GPU" in node["resources"]) == is_gpu
        assert node["resources"]["memory"] >= 3 << 30
        assert name == "headgroup" or node["resources"]["CPU"] >= 2
        if name == "spot":
            assert node["labels"] == {"ray.io/market-type": "spot"}
            assert node["min_workers"] == 0, "a job must be able to start without machines that can be refused"


@each_ray
def test_only_spot_groups_go_to_spot_machines(folder: str, resource: dict[str, Any]) -> None:
    for group in clusters(resource)["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        text = str(spec.get("nodeSelector")) + str(spec.get("tolerations"))
        assert ("spot" in text) == (group["groupName"] == "spot")
        assert group["groupName"] != "spot" or spec["terminationGracePeriodSeconds"] < 30


def test_an_overlay_knows_one_kind_of_spot_machine() -> None:
    found: dict[str, set[str]] = {}
    for folder, resource in RAY:
        for group in clusters(resource)["workerGroupSpecs"]:
            if folder.startswith("overlays/") and group["groupName"] == "spot":
                overlay = folder.split("/")[1]
                found.setdefault(overlay, set()).add(str(group["template"]["spec"]["nodeSelector"]))
    assert [len(kinds) for kinds in found.values()] == [1]


@each_job
def test_jobs_end(folder: str, resource: dict[str, Any]) -> None:
    spec = resource["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["submitterConfig"]["backoffLimit"] > 0
    assert 0 < spec["activeDeadlineSeconds"] <= 7 * 24 * 3600
    assert spec["shutdownAfterJobFinishes"]


@each_job
def test_jobs_start_with_what_they_ask_for(folder: str, resource: dict[str, Any]) -> None:
    # KubeRay submits when every group has its least: nothing is refused, or waits, for what an autoscaler may bring.
    words = shlex.split(resource["spec"]["entrypoint"])
    option = {key: value for key, value in pairwise(words) if key.startswith("--")}
    if "score" in words:
        predictors = int(option.get("--predictors", 1))
        cpus, gpus = predictors + 2, predictors * float(option.get("--gpus-per-predictor", 0))
    else:
        least = int(option["--workers"].split(":")[0])
        cpus, gpus = least * int(option["--cpus-per-worker"]), least * ("--gpu" in words)
    has_cpus = has_gpus = 0
    for group in clusters(resource)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert group["replicas"] == group["minReplicas"], (
            "the operator counts `replicas`, the autoscaler keeps the least"
        )
        has_cpus += group["minReplicas"] * int(limits["cpu"])
        has_gpus += group["minReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    assert has_cpus >= cpus
    assert has_gpus >= gpus


@each_job
def test_the_doctor_looks_where_the_job_works(folder: str, resource: dict[str, Any]) -> None:
    words = shlex.split(resource["spec"]["entrypoint"])
    (doctor,) = resource["spec"]["submitterPodTemplate"]["spec"]["initContainers"]
    for looks_at, works_with in (("--catalog", {"--catalog", "--dataset"}), ("--tables", {"--tables", "--storage"})):
        (place,) = {value for key, value in pairwise(words) if key in works_with}
        assert dict(pairwise(doctor["command"]))[looks_at] == place


# --- selectors and budgets ---


def labelled_pods() -> list[dict[str, str]]:
    """The labels of every pod that the manifests lead to, KubeRay's own among them."""
    found = []
    for _, resource in RESOURCES:
        if resource["apiVersion"] == "ray.io/v1":
            cluster = clusters(resource)
            groups = [("head", cluster["headGroupSpec"]), *(("worker", one) for one in cluster["workerGroupSpecs"])]
            found += [
                one["template"]["metadata"]["labels"] | {"ray.io/node-type": kind, "ray.io/is-ray-node": "yes"}
                for kind, one in groups
            ]
            if "submitterPodTemplate" in resource["spec"]:
                found.append(resource["spec"]["submitterPodTemplate"]["metadata"]["labels"])
        elif "template" in resource.get("spec", {}):
            found.append(resource["spec"]["template"]["metadata"]["labels"])
    return found


def selects(labels: dict[str, str]) -> bool:
    return any(pod.items() >= labels.items() for pod in labelled_pods())


@each
def test_selectors_find_pods(folder: str, resource: dict[str, Any]) -> None:
    for node in walk(resource.get("spec", {})):
        selector = node.get("podSelector") or node.get("selector") or {}
        labels = selector.get("matchLabels", selector if resource["kind"] == "Service" else {})
        if labels and labels != {"k8s-app": "kube-dns"} and "kuberay-operator" not in labels.values():
            assert selects(labels), labels


@each
def test_budgets_count_pods(folder: str, resource: dict[str, Any]) -> None:
    if resource["kind"] == "PodDisruptionBudget":
        # For pods of RayClusters the API server takes neither maxUnavailable nor percentages.
        assert resource["spec"].keys() == {"minAvailable", "selector"}
        assert type(resource["spec"]["minAvailable"]) is int


@each_ray
def test_heads_have_a_budget(folder: str, resource: dict[str, Any]) -> None:
    budgets = [one["spec"]["selector"]["matchLabels"] for one in render(folder) if one["kind"] == "PodDisruptionBudget"]
    run = clusters(resource)["headGroupSpec"]["template"]["metadata"]["labels"]["facereel/run"]
    assert run == resource["metadata"]["name"]
    if not folder.startswith("overlays/small/serve"):
        assert {"facereel/run": run, "ray.io/node-type": "head"} in budgets


# --- the service ---


@each_service
def test_serve_accepts_the_config(folder: str, resource: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(resource["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert (application.name, application.route_prefix) == ("facereel", "/")
    assert not application.deployments, "replicas and queues come from the settings alone"
    module, _, attribute = application.import_path.partition(":")
    assert (module, attribute) == ("serve.app", "app")
    assert config.http_options.port == 8000


@each_service
def test_requests_in_work_outlive_an_upgrade(folder: str, resource: dict[str, Any]) -> None:
    from serve.deployments import application

    settings = Settings(serving={"api_keys": "keys"})
    request_s = settings.serving.max_body_s + settings.serving.max_request_s
    deployment = application(settings)._bound_deployment
    grace_s = deployment._deployment_config.graceful_shutdown_timeout_s
    spec = resource["spec"]
    assert spec["upgradeStrategy"] == {"type": "NewCluster"}
    assert spec["rayClusterDeletionDelaySeconds"] > grace_s > request_s
    for group in clusters(resource)["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        for container in pod["containers"]:
            wait_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pod["terminationGracePeriodSeconds"] > wait_s > request_s
            assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}


def test_the_application_is_what_serve_would_import(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve import Application

    monkeypatch.setenv("FACEREEL_CONFIG", "/dev/null")
    for data in settings_in("platform").values():
        for name, value in data.items():
            if name.startswith("FACEREEL_"):
                monkeypatch.setenv(name, value)
    import serve.app

    assert isinstance(serve.app.app, Application)


# --- the guide ---


def guide_commands() -> list[str]:
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+#.*", "", line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("line", [line for line in guide_commands() if line.startswith(("python ", "ray "))])
def test_the_guides_commands_parse(line: str) -> None:
    outer, _, inner = line.partition(" -- ")
    if inner:
        parse(shlex.split(inner))
    else:
        parse(shlex.split(outer))


def test_the_guides_folders_and_targets_exist() -> None:
    applied = set(re.findall(r"-k infra/k8s/overlays/mine/(\w+)", "\n".join(guide_commands())))
    assert applied == {"platform", "train", "score", "serve", "ray"}
    for name in applied:
        assert f"overlays/production/{name}" in folders()
    dockerfile = (ROOT / "infra" / "docker" / "Dockerfile").read_text()
    for target in re.findall(r"--target (\w+)", "\n".join(guide_commands())):
        assert f" AS {target}\n" in dockerfile

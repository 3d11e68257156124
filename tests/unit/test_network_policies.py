"""The manifests' network policies: what the system needs passes, and nothing else does."""

import ipaddress
from typing import Any

import pytest

from tests.manifests import everything, render


def test_nothing_is_open_by_default() -> None:
    policies = [one["spec"] for one in render("platform") if one["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    for _, resource in everything():
        if resource["kind"] == "NetworkPolicy":
            rules = [*resource["spec"].get("ingress", []), *resource["spec"].get("egress", [])]
            for rule in rules:
                peers = rule.get("from") or rule.get("to")
                assert peers, "a rule without peers lets everybody in"
                assert all(peer for peer in peers)
                for peer in peers:
                    if "ipBlock" in peer:
                        assert peer["ipBlock"]["except"] == ["169.254.0.0/16"]
                        assert rule["ports"]


# Pods by their labels, in our namespace; those of others by their namespace's labels too.
HEAD_POD = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head", "facereel/run": "serve"}
WORKER_POD = HEAD_POD | {"ray.io/node-type": "worker"}
SUBMITTER = {"facereel/role": "submitter"}
MLFLOW, POSTGRES = ({"app.kubernetes.io/name": name} for name in ("mlflow", "postgres"))
OPERATOR = ({"kubernetes.io/metadata.name": "kuberay"}, {"app.kubernetes.io/component": "kuberay-operator"})
PROMETHEUS = ({"kubernetes.io/metadata.name": "monitoring"}, {})
CLIENT = ({"kubernetes.io/metadata.name": "web", "facereel/client": "true"}, {})
STRANGER = ({"kubernetes.io/metadata.name": "other"}, {"facereel/role": "submitter", "ray.io/is-ray-node": "yes"})
DNS = ({"kubernetes.io/metadata.name": "kube-system"}, {"k8s-app": "kube-dns"})
Side = dict[str, str] | tuple[dict[str, str], dict[str, str]] | str


def passes(source: Side, target: Side, port: int) -> bool:
    """Whether the policies let TCP through: out of the source, if it is a pod of ours, and into the target likewise."""
    policies = [one["spec"] for name in ("platform", "serve") for one in render(name) if one["kind"] == "NetworkPolicy"]

    def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
        assert selector.keys() <= {"matchLabels"}
        return labels.items() >= selector.get("matchLabels", {}).items()

    def is_peer(peer: dict[str, Any], side: Side) -> bool:
        if isinstance(side, str):
            block = peer.get("ipBlock")
            address = ipaddress.ip_address(side)
            return block is not None and not any(
                (address in ipaddress.ip_network(net)) != is_in
                for net, is_in in [(block["cidr"], True), *((net, False) for net in block.get("except", []))]
            )
        if "ipBlock" in peer:
            return False  # pods are not chosen by their addresses
        namespace, pod = side if isinstance(side, tuple) else (None, side)
        if namespace is None:
            is_there = "namespaceSelector" not in peer or peer["namespaceSelector"] == {}
        else:
            is_there = "namespaceSelector" in peer and matches(peer["namespaceSelector"], namespace)
        return is_there and matches(peer.get("podSelector", {}), pod)

    def allows(side: Side, other: Side, kind: str, peers: str) -> bool:
        if not isinstance(side, dict):
            return True
        own = [spec for spec in policies if kind in spec["policyTypes"] and matches(spec["podSelector"], side)]
        assert own, "nothing is denied"
        return any(
            any(is_peer(peer, other) for peer in rule[peers])
            and ("ports" not in rule or port in {one["port"] for one in rule["ports"] if one["protocol"] == "TCP"})
            for spec in own
            for rule in spec.get(kind.lower(), [])
        )

    return allows(source, target, "Egress", "to") and allows(target, source, "Ingress", "from")


@pytest.mark.parametrize(
    ("source", "target", "ports"),
    [
        (WORKER_POD, HEAD_POD, [6379, 8265, 10001, 23456]),
        (HEAD_POD, WORKER_POD, [8000, 8076, 10002, 52365]),
        (OPERATOR, HEAD_POD, [8265, 8000]),
        (SUBMITTER, HEAD_POD, [8265]),
        (SUBMITTER, MLFLOW, [5000]),
        (WORKER_POD, MLFLOW, [5000]),
        (HEAD_POD, MLFLOW, [5000]),
        (MLFLOW, POSTGRES, [5432]),
        (PROMETHEUS, HEAD_POD, [8080]),
        (PROMETHEUS, WORKER_POD, [8080]),
        (CLIENT, WORKER_POD, [8000]),
        (HEAD_POD, "10.96.0.1", [443, 6443]),  # the API server
        *((pod, "52.216.0.1", [443]) for pod in (WORKER_POD, HEAD_POD, MLFLOW, SUBMITTER)),  # a bucket
        *((pod, DNS, [53]) for pod in (WORKER_POD, HEAD_POD, MLFLOW, SUBMITTER, POSTGRES)),
    ],
)
def test_what_is_needed_passes(source: Side, target: Side, ports: list[int]) -> None:
    assert [port for port in ports if not passes(source, target, port)] == []


@pytest.mark.parametrize(
    ("source", "target", "ports"),
    [
        (STRANGER, HEAD_POD, [6379, 8265, 8000, 8080, 10001]),
        (STRANGER, WORKER_POD, [8000, 8080, 10002, 52365]),
        (STRANGER, MLFLOW, [5000]),
        (CLIENT, HEAD_POD, [8000, 8265]),
        (CLIENT, WORKER_POD, [8080, 10002, 52365]),
        (PROMETHEUS, HEAD_POD, [8265, 6379]),
        (SUBMITTER, HEAD_POD, [6379, 10001]),
        (SUBMITTER, WORKER_POD, [8000, 8265, 52365]),
        *((pod, POSTGRES, [5432]) for pod in (WORKER_POD, HEAD_POD, SUBMITTER)),
        (MLFLOW, HEAD_POD, [8265, 6379]),
        (POSTGRES, "52.216.0.1", [443]),
        *((pod, "169.254.169.254", [80, 443]) for pod in (WORKER_POD, HEAD_POD, MLFLOW, SUBMITTER)),
    ],
)
def test_nothing_else_passes(source: Side, target: Side, ports: list[int]) -> None:
    assert [port for port in ports if passes(source, target, port)] == []

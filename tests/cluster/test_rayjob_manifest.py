"""`jobs/rayjob.yaml`, by the schema of KubeRay's RayJob and by Ray's own reader; its nodes are those of cluster.yaml.

`rayjob_schema.yaml` has KubeRay's own fields. What it takes from Kubernetes (pod templates, environment, services) is
checked by Kubernetes' published definitions, which the package kubernetes-validate ships.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from packaging.version import Version
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
from referencing import Registry, Resource

from raysft.cluster import node_types
from raysft.cluster.admission import Node, fits
from raysft.spec.resources import Shape
from raysft.spec.sweep import load_sweep

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
ON_KUBERNETES = {"metadata": {"name": "raysft-abcde", "namespace": "default"}}

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    loaded: Manifest = yaml.safe_load((ROOT / "jobs" / "rayjob.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def by_ray(manifest: Manifest) -> dict[str, Any]:
    """The cluster as Ray's autoscaler reads it from Kubernetes, and by its own validator."""
    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr({**ON_KUBERNETES, "spec": _cluster(manifest)})
    return config


@pytest.fixture(scope="module")
def by_ray_up() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    version = f"v{kubernetes_validate.latest_version()}-local-strict"
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / version
    definitions = json.loads((folder / "_definitions.json").read_text())
    own = yaml.safe_load(Path(__file__).with_name("rayjob_schema.yaml").read_text())
    closed = _closed(own, definitions["$id"] + "#/$defs/io.k8s.")
    registry: Registry[Any] = Registry().with_resource(definitions["$id"], Resource.from_contents(definitions))
    return Draft202012Validator(closed, registry=registry)


def _closed(schema: Any, kubernetes: str) -> Any:
    """The schema with no other properties than those it lists, and with its references to Kubernetes made whole."""
    if isinstance(schema, list):
        return [_closed(one, kubernetes) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str):
        return {"$ref": schema["$ref"].replace("k8s:", kubernetes)}
    closed = {name: _closed(one, kubernetes) for name, one in schema.items()}
    return {**closed, "additionalProperties": False} if "properties" in schema else closed


def _cluster(manifest: Manifest) -> dict[str, Any]:
    cluster: dict[str, Any] = manifest["spec"]["rayClusterSpec"]
    return cluster


def _groups(manifest: Manifest) -> list[dict[str, Any]]:
    return [_cluster(manifest)["headGroupSpec"], *_cluster(manifest)["workerGroupSpecs"]]


def _containers(manifest: Manifest) -> list[dict[str, Any]]:
    return [container for group in _groups(manifest) for container in group["template"]["spec"]["containers"]]


def test_the_schema_accepts_it(manifest: Manifest, schema: Draft202012Validator) -> None:
    Draft202012Validator.check_schema(schema.schema)
    assert [error.message for error in schema.iter_errors(manifest)] == []


def _renamed(holder: dict[str, Any], old: str, new: str) -> None:
    holder[new] = holder.pop(old)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda job: _renamed(job["spec"], "entrypoint", "entryPoint"), "'entryPoint' was unexpected"),
        (lambda job: _renamed(_cluster(job), "authOptions", "authOption"), "'authOption' was unexpected"),
        (lambda job: _renamed(_groups(job)[1], "priority", "prioritiy"), "'prioritiy' was unexpected"),
        (lambda job: _renamed(_containers(job)[1], "envFrom", "envfrom"), "'envfrom' was unexpected"),
        (lambda job: _renamed(_groups(job)[1]["template"]["spec"], "tolerations", "toleration"), "was unexpected"),
        (lambda job: job["spec"].update(backoffLimit="5"), "'5' is not of type 'integer'"),
        (lambda job: _groups(job)[1].update(resources={"GPU": 1}), "1 is not of type 'string'"),
        (lambda job: _containers(job)[0]["env"][1].update(value=1), "1 is not of type 'string'"),
        (lambda job: _cluster(job)["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
        (lambda job: _cluster(job)["autoscalerOptions"].update(version=2), "2 is not one of"),
        (lambda job: _cluster(job).pop("headGroupSpec"), "'headGroupSpec' is a required property"),
        (lambda job: _groups(job)[2].pop("groupName"), "'groupName' is a required property"),
        (lambda job: _groups(job)[0].pop("template"), "'template' is a required property"),
        (lambda job: _groups(job)[1]["template"]["spec"].pop("containers"), "'containers' is a required property"),
        (lambda job: _containers(job)[0].pop("name"), "'name' is a required property"),
        (lambda job: job.update(kind="RayJobs"), "'RayJob' was expected"),
    ],
)
def test_the_schema_refuses(
    manifest: Manifest, schema: Draft202012Validator, breaks: Callable[[Manifest], Any], message: str
) -> None:
    broken = json.loads(json.dumps(manifest))  # without the YAML's aliases, so that one place changes
    breaks(broken)
    (error,) = schema.iter_errors(broken)
    assert message in error.message


def test_its_nodes_are_those_of_cluster_yaml(by_ray: dict[str, Any], by_ray_up: dict[str, Any]) -> None:
    found, expected = (
        {
            name: (
                {which: amount for which, amount in kind["resources"].items() if which != "memory"},
                kind["labels"],
                kind.get("priority"),
                kind.get("min_workers", 0),
                kind.get("max_workers", 0),
            )
            for name, kind in config["available_node_types"].items()
            if name != config["head_node_type"]
        }
        for config in (by_ray, by_ray_up)
    )
    assert found == expected
    head, expected_head = (config["available_node_types"][config["head_node_type"]] for config in (by_ray, by_ray_up))
    assert (head["resources"]["CPU"], head["labels"]) == (expected_head["resources"]["CPU"], expected_head["labels"])
    assert head["resources"]["CPU"] == 0
    assert by_ray["idle_timeout_minutes"] == by_ray_up["idle_timeout_minutes"]


def test_what_a_sweep_sees_of_it_on_kubernetes(
    manifest: Manifest, by_ray_up: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def get(self: KubernetesHttpApiClient, path: str) -> dict[str, Any]:
        asked.append(f"{self._namespace}/{path}")
        return {**ON_KUBERNETES, "spec": _cluster(manifest)}

    monkeypatch.setattr(KubernetesHttpApiClient, "get", get)
    assert node_types.read_node_types("10.0.0.1:6379") == ()  # no autoscaler here for it, and no pod
    (tmp_path / "namespace").write_text("mine\n")
    monkeypatch.setattr(node_types, "_POD_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "raysft-abcde")
    found = node_types.read_node_types("10.0.0.1:6379")
    assert asked == ["mine/rayclusters/raysft-abcde"]
    assert found == node_types.node_types(by_ray_up)
    assert [(kind.gpus, kind.most) for kind in found] == [(1, 16), (1, 16), (8, 4), (8, 4)]


def test_the_trials_of_the_paper_fit_and_the_head_takes_none(by_ray: dict[str, Any]) -> None:
    nodes = [
        Node(kind.cpus, kind.gpus, kind.labels) for kind in node_types.node_types(by_ray) for _ in range(kind.most)
    ]
    shape = load_sweep(ROOT / "sweeps" / "massive_sft.yaml").resources.shape
    assert (shape.workers, shape.gpus) == (8, 1)
    assert fits([shape], nodes)
    assert fits([Shape(1, 16, 8, (("ray.io/market-type", "on-demand"),))], nodes)
    assert "headgroup" not in {kind.name for kind in node_types.node_types(by_ray)}


def test_what_the_operator_asks_beyond_the_schema(manifest: Manifest) -> None:
    spec, cluster = manifest["spec"], _cluster(manifest)
    assert len(manifest["metadata"]["name"]) <= 47
    assert spec["shutdownAfterJobFinishes"]  # or ttlSecondsAfterFinished would be refused
    assert spec["submissionMode"] == "HTTPMode"
    assert cluster["autoscalerOptions"]["version"] == "v2"  # or a priority would be
    assert all("rayStartParams" not in group for group in _groups(manifest))  # resources may not be said twice
    assert all("restartPolicy" not in group["template"]["spec"] for group in _groups(manifest))
    assert Version(cluster["rayVersion"]) >= Version("2.60.0")


def test_containers_have_room_on_their_nodes_and_the_gpus_that_ray_counts(manifest: Manifest) -> None:
    for group in _groups(manifest)[1:]:
        (container,) = group["template"]["spec"]["containers"]
        for asked in container["resources"].values():
            assert asked["nvidia.com/gpu"] == int(group["resources"]["GPU"])
            assert int(asked["cpu"]) <= int(group["resources"]["CPU"])
        (drain,) = container["env"]
        assert int(drain["value"]) < group["template"]["spec"]["terminationGracePeriodSeconds"]


def test_credentials_come_from_a_secret_and_the_job_finds_what_it_names(manifest: Manifest) -> None:
    containers = _containers(manifest)
    assert all(container["envFrom"] == [{"secretRef": {"name": "raysft-credentials"}}] for container in containers)
    literal = {variable["name"] for container in containers for variable in container.get("env", ())}
    assert literal == {"RAYSFT_STORAGE", "RAY_TRAIN_ENABLE_STATE_TRACKING", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"}
    python, script, sweep, option, storage = shlex.split(manifest["spec"]["entrypoint"])
    assert (python, option, storage) == ("python", "--storage", "$RAYSFT_STORAGE")
    assert (ROOT / Path(script).relative_to("/home/ray/raysft")).is_file()
    assert str(Path(sweep).parent) in {mount["mountPath"] for mount in containers[0]["volumeMounts"]}
    assert "RAYSFT_STORAGE" in {variable["name"] for variable in containers[0]["env"]}

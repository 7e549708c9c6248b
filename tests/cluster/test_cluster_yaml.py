"""`cluster.yaml`, by Ray's own validator, and what the sweep's code expects of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raysft.cluster.admission import Node, fits
from raysft.spec.resources import Shape

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
SPOT = (("ray.io/market-type", "spot"),)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    return prepared


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    validate_config(config)
    assert config["idle_timeout_minutes"] > 0


def test_every_kind_of_gpu_node_is_spot_first_and_on_demand_behind(config: dict[str, Any]) -> None:
    types = {name: node for name, node in config["available_node_types"].items() if node["resources"].get("GPU")}
    assert sorted({node["resources"]["GPU"] for node in types.values()}) == [1, 8]
    for name, node in types.items():
        if name.endswith("-spot"):
            behind = types[name.removesuffix("-spot")]
            assert node["priority"] > behind["priority"]
            assert node["resources"] == behind["resources"]
            assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
            assert "InstanceMarketOptions" not in behind["node_config"]
            assert [other["labels"]["ray.io/market-type"] for other in (node, behind)] == ["spot", "on-demand"]


def test_the_head_takes_no_trial_and_the_workers_take_those_of_the_paper(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    nodes = [
        Node(node["resources"]["CPU"], node["resources"].get("GPU", 0), tuple(node["labels"].items()))
        for node in types.values()
    ]
    assert fits([Shape(8, 4, 1, SPOT)], nodes)
    assert not fits([Shape(1, 1, 0)], nodes[:1])


def test_requests_need_a_token(config: dict[str, Any]) -> None:
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    assert any(remote.endswith(".ray/auth_token") for remote in config["file_mounts"])
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config" in head

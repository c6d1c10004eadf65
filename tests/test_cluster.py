"""cluster.yaml, checked as `ray up` checks it before it calls a cloud, and for what Ray does not check."""

import copy
import re
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
IMAGE = re.compile(r"rayproject/ray:(?P<ray>\d+\.\d+\.\d+)-(?P<python>py\d+)-(?P<device>cpu|gpu)")
# Ray hands a node_config to the cloud as it is, so these are the spellings of EC2's RunInstances.
NODE_KEYS = {"InstanceType", "ImageId", "IamInstanceProfile", "BlockDeviceMappings", "InstanceMarketOptions"}


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def nodes(config):
    return config["available_node_types"]


def check(config):
    """What `ray up` does first."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_takes_it(config):
    prepared = check(config)
    assert prepared["setup_commands"] == config["setup_commands"]
    assert prepared["worker_setup_commands"][: len(config["setup_commands"])] == config["setup_commands"]


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ((), "idle_timeout_minute"),
        (("docker",), "worker_images"),
        (("auth",), "ssh_username"),
        (("available_node_types", "gpu_worker"), "max_worker"),
    ],
)
def test_a_misspelt_key_is_refused(config, place, key):
    part = config
    for step in place:
        part = part[step]
    part[key] = 1
    with pytest.raises(jsonschema.ValidationError, match=key):
        check(config)


def test_the_head_must_be_among_the_node_types(config):
    config["head_node_type"] = "heads"
    with pytest.raises(ValueError, match="head_node_type"):
        check(config)


def test_node_configs_have_known_keys_only(nodes):
    for node in nodes.values():
        assert set(node["node_config"]) <= NODE_KEYS


def test_images_are_pinned_to_the_ray_of_pyproject(config):
    bound = re.search(r'"ray\[[a-z,]+\]>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert bound, "pyproject.toml names Ray otherwise than this test knows"
    head, worker = (IMAGE.fullmatch(config["docker"][f"{node}_image"]) for node in ("head", "worker"))
    assert head
    assert worker
    assert Version(head["ray"]) == Version(worker["ray"]) == Version(bound[1])
    assert Version(bound[1]) <= Version(ray.__version__) < Version(bound[2])
    assert head["python"] == worker["python"]
    assert (head["device"], worker["device"]) == ("cpu", "gpu")


def test_the_head_is_on_demand_and_has_no_gpu(config, nodes):
    assert config["head_node_type"] == "head"
    node = nodes["head"]["node_config"]
    assert "InstanceMarketOptions" not in node
    assert re.match(r"[mcr]\d", node["InstanceType"])
    assert nodes["head"]["max_workers"] == 0, "no second node of this type"


def test_workers_are_spot_with_a_gpu_and_come_and_go(config, nodes):
    (worker,) = [node for name, node in nodes.items() if name != config["head_node_type"]]
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert re.match(r"g[56]\.", worker["node_config"]["InstanceType"])
    assert (worker["min_workers"], worker["max_workers"], config["max_workers"]) == (0, 8, 8)
    assert 0 < config["idle_timeout_minutes"] <= 30


def test_nobody_gets_in_without_the_token(config):
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert "security_group" not in config["provider"], "rules here would open ports beside Ray's own"


def test_disks_are_encrypted_and_do_not_outlive_nodes(config, nodes):
    assert config["provider"]["cache_stopped_nodes"] is False
    for node in nodes.values():
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"])


def test_what_the_installation_needs_is_copied_and_nothing_else(config):
    copied = {local: remote for remote, local in config["file_mounts"].items() if not local.startswith("~")}
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"^packages = \[(.+)\]$", project, re.M)
    assert packages, "pyproject.toml lists its packages otherwise than this test knows"
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", *re.findall(r'"(\w+)"', packages[1])}
    assert all((ROOT / local).exists() for local in copied)
    assert all(remote == f"/home/ray/checkout/{local}" for local, remote in copied.items())
    assert any("pip install" in command and "checkout" in command for command in config["setup_commands"])

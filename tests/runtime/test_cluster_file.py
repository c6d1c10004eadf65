"""cluster.yaml, checked as `ray up` checks it before it calls a cloud, and for what Ray does not check.

Also the commands for AWS and the manifest for KubeRay in jobs/README.md.
"""

import copy
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config

from gansfp.errors import UsageError
from jobs import audit

ROOT = Path(__file__).parents[2]
README = (ROOT / "jobs" / "README.md").read_text()
IMAGE = re.compile(r"rayproject/ray:(?P<ray>\d+\.\d+\.\d+)-(?P<python>py\d+)-(?P<device>cpu|gpu)")
# Ray hands a node_config to the cloud as it is, so these are the spellings of EC2's RunInstances.
NODE_KEYS = {"InstanceType", "ImageId", "IamInstanceProfile", "BlockDeviceMappings", "InstanceMarketOptions"}
# Of KubeRay's types, by the reference of 1.5.1, the fields that mean something here; `*`: any name.
MANIFEST_KEYS = {
    "": "apiVersion kind metadata spec",
    "metadata": "name namespace labels",
    "spec": "entrypoint runtimeEnvYAML submissionMode shutdownAfterJobFinishes ttlSecondsAfterFinished backoffLimit "
    "activeDeadlineSeconds rayClusterSpec submitterPodTemplate",
    "rayClusterSpec": "rayVersion authOptions enableInTreeAutoscaling autoscalerOptions headGroupSpec workerGroupSpecs",
    "authOptions": "mode",
    "autoscalerOptions": "version idleTimeoutSeconds upscalingMode resources",
    "headGroupSpec": "serviceType rayStartParams template",
    "workerGroupSpecs": "groupName replicas minReplicas maxReplicas rayStartParams template",
    "rayStartParams": "*",
    "template": "metadata spec",
    "template.spec": "serviceAccountName containers nodeSelector tolerations volumes",
    "containers": "name image env resources volumeMounts",
    "resources": "limits requests",
    "limits": "cpu memory nvidia.com/gpu",
}


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def ray_bounds():
    """The versions of Ray that pyproject.toml allows: from the first to before the second."""
    bound = re.search(r'"ray\[[a-z,]+\]>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert bound, "pyproject.toml names Ray otherwise than this test knows"
    return Version(bound[1]), Version(bound[2])


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


def test_images_are_pinned_to_the_ray_of_pyproject(config, ray_bounds):
    head, worker = (IMAGE.fullmatch(config["docker"][f"{node}_image"]) for node in ("head", "worker"))
    assert head
    assert worker
    assert Version(head["ray"]) == Version(worker["ray"]) == ray_bounds[0]
    assert ray_bounds[0] <= Version(ray.__version__) < ray_bounds[1]
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
    packages = re.search(r"^include = \[(.+)\]$", project, re.M)
    assert packages, "pyproject.toml lists its packages otherwise than this test knows"
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", *re.findall(r'"(\w+)\*"', packages[1])}
    assert all((ROOT / local).exists() for local in copied)
    assert all(remote == f"/home/ray/checkout/{local}" for local, remote in copied.items())
    assert any("pip install" in command and "checkout" in command for command in config["setup_commands"])


def gpus_of(command, monkeypatch):
    """What a `python -m jobs.audit ...` says of GPUs, after the job's own parser has taken all of it."""
    taken = {}

    def stop(options):
        taken.update(vars(options))
        raise InterruptedError

    monkeypatch.setattr(audit, "final_config", stop)  # the first thing that is done with the options
    python, *arguments = shlex.split(command)
    assert (python, arguments[:2]) == ("python", ["-m", "jobs.audit"])
    with pytest.raises(InterruptedError):
        audit.main(arguments[2:])
    assert all(re.match(r"(s3|gs)://|/", taken[place]) for place in ("data", "work")), "a job's paths are absolute"
    return taken["gpus"]


@pytest.mark.parametrize("text", [README, (ROOT / "cluster.yaml").read_text()], ids=["jobs/README.md", "cluster.yaml"])
def test_the_command_for_aws_is_one_that_jobs_audit_takes(text, config, monkeypatch):
    said = re.sub(r"^#", " ", text, flags=re.M)
    found = re.search(r"^ +ray up cluster\.yaml$.+?-- \\\n +(python -m .+?)\n", said, re.M | re.S)
    assert found
    assert gpus_of(found[1], monkeypatch) == config["max_workers"]
    with pytest.raises(UsageError, match="--gpuses"):
        gpus_of(found[1].replace("--gpus", "--gpuses"), monkeypatch)


@pytest.fixture
def manifest():
    blocks = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.+?)^```$", README, re.M | re.S)]
    (found,) = [block for block in blocks if block["kind"] == "RayJob"]
    return found


def unknown_keys(part, name="", above=""):
    """The fields of a manifest that MANIFEST_KEYS lacks, with where they are."""
    known = MANIFEST_KEYS.get(f"{above}.{name}") or MANIFEST_KEYS[name]
    for key, value in part.items():
        if known != "*" and key not in known.split():
            yield f"{name}.{key}"
        else:
            for below in value if isinstance(value, list) else [value]:
                if isinstance(below, dict):
                    yield from unknown_keys(below, key, name)


def test_the_manifest_has_known_fields_only(manifest):
    assert list(unknown_keys(manifest)) == []
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 0
    assert list(unknown_keys(manifest)) == ["workerGroupSpecs.minReplica"]


def test_the_manifest_scales_gpu_workers_from_none(manifest, monkeypatch):
    cluster = manifest["spec"]["rayClusterSpec"]
    (worker,) = cluster["workerGroupSpecs"]
    (limits,) = [container["resources"]["limits"] for container in worker["template"]["spec"]["containers"]]
    assert (manifest["apiVersion"], cluster["enableInTreeAutoscaling"]) == ("ray.io/v1", True)
    assert (worker["replicas"], worker["minReplicas"]) == (0, 0)
    asked = gpus_of(manifest["spec"]["entrypoint"], monkeypatch)
    assert asked == worker["maxReplicas"] * int(limits["nvidia.com/gpu"])
    assert int(limits["cpu"]) >= 2, "a GPU's slices are decoded on the cores beside it"
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}, "KubeRay takes strings only"
    assert manifest["spec"]["shutdownAfterJobFinishes"] is True, "or the head costs money until somebody sees it"


def test_the_manifest_asks_for_a_token_and_opens_nothing(manifest):
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_the_manifests_image_has_the_ray_of_pyproject(manifest, config, ray_bounds):
    cluster = manifest["spec"]["rayClusterSpec"]
    assert Version(cluster["rayVersion"]) == ray_bounds[0]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    (image,) = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert f"docker build -t {image} " in README
    assert f"    FROM {config['docker']['worker_image']}\n" in README
    assert image.endswith(f":{cluster['rayVersion']}")

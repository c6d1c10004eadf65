"""What is not trusted stays harmless: nothing listens beyond this machine, nothing that is read is run."""

import importlib
import ipaddress
import os
import pickle
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from processes import alive, descendants, end
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from gansfp import store
from gansfp.collection.catalog import read_previous
from gansfp.collection.layout import find_images
from gansfp.decision.search_result import read_search
from gansfp.embedding import shards
from gansfp.errors import DataError, GansfpError, UsageError, WeightsError
from gansfp.networks.weights import load_weights
from gansfp.runtime import cluster

ROOT = Path(__file__).parents[1]

START = """
import ray
from gansfp.runtime.cluster import ClusterConfig, start_ray
start_ray(ClusterConfig("local"))

@ray.remote
class Actor:
    def answer(self):
        return 1

actor = Actor.remote()
ray.get(actor.answer.remote())
print(ray._private.worker._global_node.get_session_dir_path(), flush=True)
input()
"""


def listening(pids) -> set[str]:
    """The addresses on which these processes accept TCP connections."""
    sockets = set()
    for pid in pids:
        for handle in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                sockets.add(os.readlink(f"/proc/{pid}/fd/{handle}"))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                words = bytes.fromhex(fields[1].partition(":")[0])
                address = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.add(str(ipaddress.ip_address(address)))
    return found


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def own(folder: Path) -> bool:
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o077


@pytest.mark.ray
@pytest.mark.timeout(120)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_on_one_machine_nobody_else_gets_in(tmp_path):
    """All listen on loopback alone; logs, sockets and the token are in folders that only this user may enter."""
    with socket.create_server(("0.0.0.0", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6):
        assert {"0.0.0.0", "::1"} <= listening([os.getpid()])
    assert [is_loopback(one) for one in ("0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1")] == [False] * 4
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    command = [sys.executable, "-c", START]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        started = {}
        try:
            session = Path(process.stdout.readline().strip())
            started = descendants(process.pid)
            assert (session / "logs").is_dir()
            assert (session / "sockets").is_dir()
            assert any(own(folder) for folder in session.parents)
            assert (tmp_path / ".ray/auth_token").is_file()
            assert own(tmp_path / ".ray")
            assert len(alive(started)) > 3
            addresses = listening([process.pid, *alive(started)])
            assert addresses
            assert all(map(is_loopback, addresses)), addresses
            process.communicate("\n", timeout=60)
        finally:
            process.kill()
            end(started)


def test_a_folder_that_others_may_enter_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = Path(cluster._own_folder()).parent
    assert own(folder)
    assert folder.parent == tmp_path
    folder.chmod(0o755)
    with pytest.raises(UsageError, match="other users may enter"):
        cluster._own_folder()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="other users may enter"):
        cluster._own_folder()


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.fixture
def trap(tmp_path):
    """A folder that is there as soon as a pickle was opened."""
    return tmp_path / "executed"


@pytest.fixture(params=["pickle", "column", "struct", "list", "tensor"])
def malicious(request, trap) -> bytes:
    """A file with code in it: a pickle, or a Parquet file with Ray's types, whose values or description are pickles."""
    code = pickle.dumps(Payload(trap))
    if request.param == "pickle":
        return code
    names = ["image_id", "sha256", "uri", "task", "set", "split", "role", "status", "configuration", "error"]
    told = None
    if request.param == "tensor":
        column = pa.array([[1.0]], pa.list_(pa.float32()))
        told = {"ARROW:extension:name": "ray.data.arrow_tensor", "ARROW:extension:metadata": code}
    else:
        column = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), pa.array([code], pa.large_binary()))
    if request.param == "struct":
        column = pa.StructArray.from_arrays([column], ["x"])
    if request.param == "list":
        column = pa.ListArray.from_arrays([0, 1], column)
    sink = pa.BufferOutputStream()
    schema = pa.schema([pa.field(name, column.type, metadata=told) for name in names])
    identity = {shards.IDENTITY: b'{"backbone": "lbp", "view": "full"}'}
    pq.write_table(pa.table([column] * len(names), schema=schema.with_metadata(identity)), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("malicious", ["column", "struct", "list"], indirect=True)
def test_the_danger_is_real(malicious, trap):
    """Where ray.data is imported, looking at a column runs what is in it; if this ends, so may the precaution."""
    pq.read_table(pa.BufferReader(malicious))["image_id"].to_pylist()
    assert trap.is_dir()


IDENTITY = {"backbone": "lbp", "view": "full"}


def test_a_shard_is_not_run_but_removed(malicious, trap, tmp_path, caplog):
    place = tmp_path / "embeddings" / "lbp" / "full" / "0.parquet"
    place.parent.mkdir(parents=True)
    place.write_bytes(malicious)
    with pytest.raises(DataError, match="no embedding of 1 images"):
        shards.read_embeddings(str(tmp_path), IDENTITY, {"a": "0"})
    assert shards.repair_and_list_done(str(tmp_path), IDENTITY, {"a": "0"}) == set()
    assert "not a whole shard" in caplog.text
    assert not place.exists()
    assert not trap.exists()


def test_a_catalog_and_a_search_in_work_are_not_run(malicious, trap, tmp_path):
    (tmp_path / "catalog.parquet").write_bytes(malicious)
    assert read_previous(str(tmp_path)) is None
    folder = tmp_path / "search" / "membership"
    folder.mkdir(parents=True)
    (folder / "best.json").write_text("{}")
    (folder / "trials.parquet").write_bytes(malicious)
    with pytest.raises(DataError, match=r"cannot be read .*; run tune\.search again"):
        read_search(str(tmp_path), "membership")
    (folder / "best.json").write_bytes(malicious)
    with pytest.raises(DataError, match=r"cannot be read .*; run tune\.search again"):
        read_search(str(tmp_path), "membership")
    assert not trap.exists()


def test_a_table_of_data_is_not_run(malicious, trap, tmp_path):
    (tmp_path / "catalog.parquet").write_bytes(malicious)
    with pytest.raises(DataError, match="cannot be read as a Parquet table"):
        find_images(str(tmp_path))
    assert not trap.exists()


def test_ray_is_not_let_unpickle_descriptions(tmp_path, monkeypatch):
    place = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"day": pa.array([1], pa.int32()), "name": ["a"]}), place)
    assert store.read_parquet(str(place)).num_rows == 1
    monkeypatch.setenv("RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", "1")
    with pytest.raises(UsageError, match="unset it"):
        store.read_parquet(str(place))


def test_arrows_own_types_are_plain(tmp_path):
    storage = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), storage)
    words = pa.array(["a"]).dictionary_encode()
    pq.write_table(pa.table({"tensor": column, "words": words}), tmp_path / "plain.parquet")
    assert store.read_parquet(str(tmp_path / "plain.parquet"))["words"].to_pylist() == ["a"]


@pytest.mark.parametrize("legacy", [True, False])
def test_weights_that_hold_code_are_refused_in_one_line(legacy, trap, tmp_path):
    path = tmp_path / "mobilenetv2_100.pth"
    torch.save({"state_dict": Payload(trap)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="cannot be read as weights of mobilenetv2_100") as caught:
        load_weights("mobilenetv2_100", str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.is_dir()  # it would have run


def test_bare_pickles_named_as_weights_are_refused(trap, tmp_path):
    for ending in (".pth", ".safetensors"):
        path = tmp_path / f"mobilenetv2_100{ending}"
        path.write_bytes(pickle.dumps(Payload(trap)))
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            load_weights("mobilenetv2_100", str(tmp_path))
        path.unlink()
    assert not trap.exists()


COMMANDS = {
    "jobs.embed": ["--backbones", "lbp"],
    "tune.search": ["--task", "attribution", "--backbones", "lbp"],
    "jobs.final": [],
    "jobs.audit": ["--backbones", "lbp"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_keeps_tables_within_data_unless_told(command, tmp_path, monkeypatch):
    data, work = tmp_path / "data", tmp_path / "work"
    data.mkdir()
    (work / "search").mkdir(parents=True)  # jobs.final wants one before it looks at DATA
    (tmp_path / "outside.png").write_bytes(b"")
    told = "image_id,uri,task,split,role\na,../outside.png,attribution,test,unknown\n"
    (data / "catalog.csv").write_text(told)
    module = importlib.import_module(command)
    arguments = ["--data", str(data), "--work", str(work), *COMMANDS[command]]
    with pytest.raises(DataError, match=r"the uri '\.\./outside\.png' leads out of .*--allow-outside"):
        module.main(arguments)

    def update(*places, allow_outside, sixteen_bit, progress):
        raise GansfpError(f"allowed: {allow_outside}")

    monkeypatch.setattr("gansfp.runtime.collection.update_catalog", update)
    for given, allowed in (([], False), (["--allow-outside"], True)):
        with pytest.raises(GansfpError, match=f"allowed: {allowed}"):
            module.main([*arguments, *given])

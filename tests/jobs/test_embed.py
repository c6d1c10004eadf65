"""The embedding job on a Ray that the tests start: whole runs, bad images, second runs."""

import logging
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from runs import ROOT, draw, rows_on_disk, spoil

from gansfp.collection.catalog import read_catalog
from gansfp.device import is_bfloat16_fast
from gansfp.embedding import shards
from gansfp.embedding.backbones import cpu_features
from gansfp.embedding.embedder import EmbedConfig, Embedder, identity, load_all_weights
from gansfp.embedding.network_masks import Segmenter
from gansfp.errors import DataError, GansfpError
from gansfp.images.lungs import threshold_mask
from gansfp.images.slices import Source, load
from gansfp.networks import model_files
from gansfp.networks.lung_unet import ARCHITECTURE, LungUnet
from gansfp.runtime import cluster, precision
from gansfp.runtime.embedding import MAX_PASS, PASS, Plan, Workers, _pipeline, _rows, available, embed, plan
from gansfp.training.unet import Averaging

BACKBONES, VIEWS = ("test_resnet@random", "highpass-w15-32", "lbp"), ("full", "lungs")
PAIRS = [(backbone, view) for backbone in BACKBONES for view in VIEWS]
OUR_LINES = re.compile(
    r"(catalog: |embed: |left out: |no lungs in |\d+ slices (were not|could not)|\d+ unreadable images"
    r"|.*byte-identical|careful: )"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """DATA: 60 slices, one with another size and one without lungs, and five bad files."""
    folder = tmp_path_factory.mktemp("data") / "membership" / "a" / "train"
    for role in ("generated", "used", "not_used"):
        draw(folder / role, 20, seed=len(role))
    first, second = sorted((folder / "used").iterdir())[:2]
    Image.open(first).resize((300, 300)).save(first)
    Image.fromarray(np.full((256, 256), 77, np.uint8)).save(second)
    spoil(folder / "used")
    return folder.parents[2]


def command(data: Path, work: Path, *options: str) -> list[str]:
    chosen = ("--backbones", ",".join(BACKBONES), "--views", ",".join(VIEWS), "--precision", "float32")
    return [sys.executable, "-m", "jobs.embed", "--data", str(data), "--work", str(work), *chosen, *options]


def run_job(*arguments, timeout=150, **options):
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout, **options)


def everything_once(work: Path, ids) -> bool:
    return all(Counter(rows_on_disk(work, pair)) == Counter(list(ids)) for pair in PAIRS)


@pytest.fixture(scope="module")
def work(data, tmp_path_factory):
    """WORK after one run from the command line, and the output of that run."""
    folder = tmp_path_factory.mktemp("work")
    done = run_job(data, folder)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def catalog(data):
    return read_catalog(str(data))


@pytest.fixture(scope="module")
def local_ray():
    cluster.start_ray(cluster.ClusterConfig("local"))
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
class TestOneRun:
    def test_every_image_has_its_vector(self, work, catalog):
        hashes = catalog.hashes()
        assert len(hashes) == 65
        assert everything_once(work[0], hashes)
        slices = [load(uri) for uri in catalog.column("uri").tolist()]
        good = np.array([s.pixels is not None for s in slices])
        pixels = np.stack([s.pixels for s in slices if s.pixels is not None])
        masks = np.stack([threshold_mask(p) for p in pixels])
        weights = load_all_weights(BACKBONES, None)
        config = EmbedConfig(tuple(PAIRS), precision="float32")
        expected = Embedder(PAIRS[:4], weights, precision="float32")(pixels, masks)
        for pair in PAIRS[:4]:
            found = shards.read_embeddings(str(work[0]), identity(pair, config, weights), hashes)
            np.testing.assert_array_equal(found.ok, good)
            norms = np.linalg.norm(expected[pair], axis=1, keepdims=True).clip(1e-9)
            assert (np.abs(found.vectors[good] - expected[pair]) / norms).max() < 1e-5

    def test_bad_images_are_named_with_their_reasons_and_the_rest_counted(self, work, data):
        said = work[1].stderr
        reasons = {
            "truncated": "trunc",
            "nothing": "empty",
            "text": "not a DICOM, PNG",
            "bomb": "60000",
            "dangling": "No such",
        }
        for image_id, reason in reasons.items():
            assert re.search(f"left out: .*{image_id}: .*{reason}", said), said
        assert "65 slices in" in said
        assert "5 failed" in said
        assert "1 slices were not 256x256 and were resized" in said
        assert "no lungs in 1 slices" in said
        assert "5 slices could not be read and have no embedding" in said
        table = pq.read_table(next(Path(shards.folder(str(work[0]), PAIRS[0])).glob("*.parquet"))).schema
        assert table.names == ["image_id", "sha256", "status", "error", "embedding"]
        for pair, no_lungs in ((PAIRS[0], {}), (PAIRS[1], {"no_lungs": 1})):  # the full view does not use masks
            statuses = Counter(
                status
                for path in Path(shards.folder(str(work[0]), pair)).glob("*.parquet")
                for status in pq.read_table(path)["status"].to_pylist()
            )
            assert statuses == {"ok": 59 - len(no_lungs), "resized": 1, **no_lungs, "failed": 5}

    def test_no_other_program_writes_anything(self, work):
        assert work[1].stdout == ""
        assert [line for line in work[1].stderr.splitlines() if not OUR_LINES.match(line)] == []

    def test_a_second_run_does_nothing_and_says_so(self, work, data):
        before = {path: path.stat().st_mtime_ns for path in work[0].rglob("embeddings/**/*.parquet")}
        done = run_job(data, work[0], "--address", "127.0.0.1:9")  # so it does not need a Ray cluster either
        assert done.returncode == 0, done.stderr
        assert "embed: nothing to do, 6 pairs for 65 slices are there" in done.stderr
        assert {path: path.stat().st_mtime_ns for path in work[0].rglob("embeddings/**/*.parquet")} == before


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
class TestOnThisRay:
    def test_another_backbone_embeds_only_that(self, work, catalog, local_ray):
        before = {path: path.stat().st_mtime_ns for path in work[0].rglob("embeddings/**/*.parquet")}
        config = EmbedConfig((*PAIRS, ("highpass", "full")), precision="float32")
        counts = embed(catalog, str(work[0]), config, load_all_weights(BACKBONES, None))
        assert counts.done == 65
        assert counts.failed == 5
        after = {path: path.stat().st_mtime_ns for path in work[0].rglob("embeddings/**/*.parquet")}
        assert {path for path in after if path not in before} == set(work[0].glob("embeddings/highpass/full/*.parquet"))
        assert before.items() <= after.items()
        assert Counter(rows_on_disk(work[0], ("highpass", "full"))) == Counter(catalog.ids.tolist())

    def test_a_replaced_image_is_embedded_again_alone(self, tmp_path, local_ray):
        draw(tmp_path / "data" / "attribution" / "test", 6)
        config = EmbedConfig((("highpass", "full"),))
        assert embed(read_catalog(str(tmp_path / "data")), str(tmp_path / "w"), config, {}).done == 6
        changed = sorted((tmp_path / "data/attribution/test").iterdir())[2]
        Image.fromarray(np.full((256, 256), 9, np.uint8)).save(changed)
        assert embed(read_catalog(str(tmp_path / "data")), str(tmp_path / "w"), config, {}).done == 1
        ids = read_catalog(str(tmp_path / "data")).ids.tolist()
        assert Counter(rows_on_disk(tmp_path / "w", ("highpass", "full"))) == Counter(ids)

    def test_a_networks_masks(self, catalog, tmp_path, local_ray):
        """Actors compute the masks, then the pairs that need them, also lbp; bad images have no lungs to count."""
        place = str(tmp_path / "unet")
        torch.manual_seed(3)
        model_files.write_model(place, {"identity": {"architecture": ARCHITECTURE}}, Averaging(LungUnet()).state_dict())
        pairs = (("highpass-w15-32", "lungs"), ("lbp", "full"), ("lbp", "outer"))
        config = EmbedConfig(pairs, mask=f"unet:{place}")
        weights = load_all_weights(config.backbones, None, config.network_mask)
        facts = embed(catalog, str(tmp_path), config, weights)
        assert facts.work_seconds["segment"] > 0
        assert facts.work_seconds["mask"] == 0
        slices = [load(uri) for uri in catalog.column("uri").tolist()]
        pixels = np.stack([s.pixels for s in slices if s.pixels is not None])
        masks = Segmenter(config.mask, weights[config.mask])(pixels)
        assert masks.any()
        assert facts.no_lungs == (~masks.any((1, 2))).sum()
        expected = Embedder(pairs[:1], {})(pixels, masks)
        for pair in pairs[1:]:
            expected[pair] = np.stack([cpu_features([pair], *one)[pair] for one in zip(pixels, masks, strict=True)])
        hashes = catalog.hashes()
        for pair in pairs:
            found = shards.read_embeddings(str(tmp_path), identity(pair, config, weights), hashes)
            assert found.ok.sum() == len(pixels)
            # A few pixels of a mask may depend on the batch of its slice.
            np.testing.assert_allclose(found.vectors[found.ok], expected[pair], atol=0.01)

    def test_decoding_is_not_fused_into_the_actors(self, catalog, tmp_path, local_ray):
        config = EmbedConfig((("highpass", "full"),))
        todo = plan(catalog, str(tmp_path), config, {})
        pipeline, actors = _pipeline(todo, str(tmp_path), config, ray.put({}), Workers(batch=8), None)
        done = pipeline.materialize()
        assert actors == ray.cluster_resources()["CPU"]
        assert "MapBatches(decode_block)" in done.stats()
        assert "decode_block)->" not in done.stats()
        assert "EmbedActor)->" not in done.stats()

    def test_nodes_are_asked_for_their_precision(self, local_ray):
        here = ray.get_runtime_context().get_node_id()
        assert precision._ask([here, "ab" * 28], gpus=0) == [is_bfloat16_fast("cpu")]  # the other node is lost

    @pytest.mark.parametrize("error", [DataError("no room on WORK"), GansfpError("something to correct")])
    def test_errors_that_a_user_can_correct_are_raised_as_in_the_worker(self, error, local_ray):
        def fail(batch):
            raise error

        with pytest.raises(type(error), match=str(error)):
            list(_rows(ray.data.range(1).map_batches(fail)))

    def test_a_device_without_memory_for_one_slice(self, local_ray):
        def fail(batch):
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")

        with pytest.raises(GansfpError, match="out of memory with a single slice"):
            list(_rows(ray.data.range(1).map_batches(fail)))


class TestPlan:
    def make(self, missing):
        missing = np.array(missing, bool)
        n, k = missing.shape
        pairs = [(f"b{column}", "full") for column in range(k)]
        images = [(f"i{row}", Source(f"u{row}"), f"h{row}") for row in range(n)]
        return Plan(pairs, [{"backbone": b} for b, _ in pairs], images, missing)

    def test_passes_do_not_compute_a_pair_that_a_large_group_has(self):
        missing = [[False, True]] * PASS + [[True, True]] * 3 + [[True, False]]
        passes = list(self.make(missing).passes(MAX_PASS))
        assert [part.pairs for part in passes] == [[("b1", "full")], [("b0", "full"), ("b1", "full")]]
        assert [len(part.images) for part in passes] == [PASS, 4]
        assert passes[1].missing.tolist() == [[True, True]] * 3 + [[True, False]]
        assert passes[1].images[3] == (f"i{PASS + 3}", Source(f"u{PASS + 3}"), f"h{PASS + 3}")

    def test_passes_are_no_larger_than_memory_allows(self):
        sizes = [len(part.images) for part in self.make(np.ones((43, 1))).passes(40)]
        assert sizes == [40, 3]

    def test_small_plans_are_one_pass(self):
        assert len(list(self.make([[False, True], [True, True], [True, False]]).passes(MAX_PASS))) == 1

    def test_blocks_hold_every_image_once(self):
        tables = list(self.make([[True, False, True]] * 7).blocks(3))
        assert [table.num_rows for table in tables] == [3, 3, 1]
        assert [i for table in tables for i in table["image_id"].to_pylist()] == [f"i{row}" for row in range(7)]
        assert tables[2]["missing"].to_pylist() == [[1, 0, 1]]


def test_only_backbones_without_weights_are_left_out_of_a_default_set(monkeypatch):
    monkeypatch.setattr("gansfp.networks.weights.why_unreachable", lambda _: "no connection")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    found, left_out = available(["densenet121", "lbp", "test_resnet@random"], None)
    assert found == ("lbp", "test_resnet@random")
    assert len(left_out) == 1
    assert "densenet121.safetensors" in left_out[0]


def test_nothing_to_do_needs_no_ray(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("gansfp.runtime.embedding.start_ray", lambda *_: pytest.fail("started Ray"))
    with caplog.at_level(logging.INFO):
        assert embed(read_catalog(str(data)), str(tmp_path), EmbedConfig(()), {}) is None
    assert "nothing to do" in caplog.text

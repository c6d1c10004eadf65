"""gansfp.runtime.embedding_blocks: the steps of embedding as plain functions, without Ray."""

import subprocess
import sys
from collections import Counter

import numpy as np
from runs import ROOT, draw, rows_on_disk, spoil

from gansfp.images.lungs import threshold_mask
from gansfp.runtime import embedding_blocks


def batch(folder, missing=None):
    paths = sorted(folder.rglob("*.png"))
    columns = {"image_id": [p.stem for p in paths], "uri": [str(p) for p in paths]}
    columns |= {name: [value] * len(paths) for name, value in (("sha256", "h"), ("frame", 0), ("rule", "auto"))}
    found = {name: np.array(values, object) for name, values in columns.items()}
    return found | {"missing": np.ones((len(paths), 2), np.uint8) if missing is None else missing}


def test_decoding_never_raises_and_says_why(tmp_path):
    draw(tmp_path / "x", 2)
    reasons = spoil(tmp_path / "x")
    found = embedding_blocks.decode_block(batch(tmp_path), [("lbp", "full")], "threshold")
    errors = dict(zip(found["image_id"], found["error"], strict=True))
    assert {i: r in errors[i] for i, r in reasons.items()} == dict.fromkeys(reasons, True)
    assert Counter(found["status"]) == {"failed": 5, "ok": 2}
    hashes = dict(zip(found["image_id"], found["sha256"], strict=True))
    assert hashes["dangling"] == ""  # not read: a later run tries it again
    assert hashes["truncated"] == "h"  # read, and bad
    assert found["vector_0"].shape == (7, 10)
    masks = np.unpackbits(found["mask"], axis=1).reshape(-1, 256, 256).astype(bool)
    np.testing.assert_array_equal(masks[-1], threshold_mask(found["pixels"][-1]))


def test_pairs_that_need_a_networks_mask_are_left_to_the_actor(tmp_path):
    draw(tmp_path / "x", 2)
    spoil(tmp_path / "x")
    pairs = [("lbp", "lungs"), ("lbp", "full"), ("lbp-mean", "outer")]
    found = embedding_blocks.decode_block(batch(tmp_path), pairs, "unet:somewhere")
    plain = embedding_blocks.decode_block(batch(tmp_path), pairs, "threshold")
    assert [name for name in found if name.startswith("vector_")] == ["vector_1"]
    np.testing.assert_array_equal(found["vector_1"], plain["vector_1"])
    assert not found["mask"].any()
    assert not found["no_lungs"].any()


def test_only_missing_rows_are_written(tmp_path):
    draw(tmp_path / "x", 3)
    missing = np.array([[1, 0], [1, 1], [0, 1]], np.uint8)
    found = embedding_blocks.decode_block(batch(tmp_path / "x", missing), [], "threshold")
    found |= {"vector_0": np.ones((3, 4)), "vector_1": np.ones((3, 2)), "limit": np.array([0, 4, 4])}
    found |= {"no_cuda": np.array([False, False, True]), "slow_bfloat16": np.array([False, True, False])}
    found["no_lungs"][0] = True
    identities = [{"backbone": "a", "view": "full", "mask": ""}, {"backbone": "b", "view": "full", "mask": "x"}]
    told = embedding_blocks.write_block(found, str(tmp_path / "w"), identities)
    assert rows_on_disk(tmp_path / "w", ("a", "full")) == ["x_000", "x_001"]
    assert rows_on_disk(tmp_path / "w", ("b", "full")) == ["x_001", "x_002"]
    seconds = told.pop("seconds")
    assert {name: column.tolist() for name, column in told.items()} == {
        "done": [3], "resized": [0], "no_lungs": [1], "failed": [0], "limit": [4], "no_cuda": [True], "bad": [""],
        "slow_bfloat16": [True],
    }  # fmt: skip
    by_step = dict(zip(embedding_blocks.STEPS, seconds[0], strict=True))
    assert all(by_step[step] > 0 for step in ("read", "decode", "mask", "write"))
    assert by_step["forward"] == 0  # there was no actor


def test_worker_processes_do_without_torch(tmp_path):
    code = (
        "import sys, numpy as np; from gansfp.runtime.embedding_blocks import decode_block;"
        "row = {'image_id': ['a'], 'uri': [sys.argv[1]], 'frame': [0], 'rule': ['auto'], 'sha256': ['']};"
        "block = {name: np.array(values) for name, values in row.items()};"
        "pairs = [('resnet50', 'full'), ('lbp', 'lungs'), ('lbp-mean', 'outer')];"
        "found = decode_block(block, pairs, 'threshold');"
        "assert found['status'][0] == 'ok' and found['vector_1'].shape == (1, 10);"
        "sys.exit(bool({'torch', 'timm', 'skimage'} & sys.modules.keys()))"
    )
    draw(tmp_path, 1)
    (image,) = tmp_path.glob("*.png")
    assert subprocess.run([sys.executable, "-c", code, str(image)], cwd=ROOT).returncode == 0

"""The same job on a cluster that somebody else started: by `ray job submit`, and by --address."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray_heads import running_head

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A Ray of this test's own, which asks for a token as a real one does."""
    with running_head(tmp_path_factory.mktemp("home"), "--num-cpus", "2") as running:
        yield running


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code that can be told from the installed one by what it says of a missing file."""
    for name in ("gansfp", "jobs", "tune"):
        shutil.copytree(ROOT / name, tmp_path / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    stages = tmp_path / "code" / "gansfp" / "runtime" / "embedding_blocks.py"
    stages.write_text(stages.read_text().replace("return store.one_line(error)", "return 'told by the copy'"))
    folder = tmp_path / "data" / "attribution" / "test"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((256, 256), 40 * number, np.uint8)).save(folder / f"{number}.png")
    (folder / "gone.png").symlink_to("/nowhere/at/all.png")
    return tmp_path / "code"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("way", ["ray job submit", "--address"])
def test_on_a_cluster_with_the_code_of_the_checkout(head, checkout, way):
    data, work = checkout.parent / "data", checkout.parent / "work"
    job = [sys.executable, "-m", "jobs.embed", "--data", str(data), "--work", str(work)]
    job += ["--backbones", "highpass", "--views", "full"]
    job = [*job, "--address", head.address] if way == "--address" else head.submit("--working-dir", ".", "--", *job)
    done = subprocess.run(job, cwd=checkout, env=head.environment, capture_output=True, text=True, timeout=150)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "left out: gone: told by the copy" in said
    assert "embed: 4 slices in" in said
    assert len(list((work / "embeddings" / "highpass" / "full").glob("*.parquet"))) == 1

"""tune.embedding_size: large embeddings are stated and, beyond --max-memory, refused in one line."""

from dataclasses import replace

import pytest
import torch

from gansfp.collection.catalog import update_catalog
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import load_all_weights
from gansfp.embedding.feature_maps import SKETCH_NUMBERS
from gansfp.errors import UsageError
from gansfp.networks.weights import create
from tune import search
from tune.embedding_size import LARGE, _numbers, check_embedding_sizes
from tune.problem import SearchConfig
from tune.space import TASKS

NAMES = ["test_resnet:map0@random", "test_resnet:sketch0@random", "highpass-w15-128", "highpass", "lbp"]
CONFIG = SearchConfig("membership", max_memory=0.05)


@pytest.fixture(scope="module")
def weights():
    return load_all_weights(NAMES, None)


@pytest.fixture(scope="module")
def catalog(challenge, tmp_path_factory):
    return update_catalog(str(challenge), str(tmp_path_factory.mktemp("sizes")))


def test_a_raw_map_beyond_the_memory_is_refused_unless_asked_for_twice(catalog, weights, caplog):
    pairs = [(name, "full") for name in NAMES]
    slices = len(catalog.select(task="membership"))
    numbers = 32 * 80 * 80
    assert 4 * numbers * slices > CONFIG.limit
    with pytest.raises(UsageError) as caught:
        check_embedding_sizes(catalog, CONFIG, pairs, weights)
    message = str(caught.value)
    assert f"204,800 numbers a slice, {4 * numbers * slices / 1e9:.2f} GB for {slices:,} slices" in message
    assert "--max-memory 0.05 GB; use test_resnet:sketch0@random, or give --allow-large-embeddings" in message
    assert "\n" not in message
    caplog.set_level("INFO")
    check_embedding_sizes(catalog, replace(CONFIG, allow_large=True), pairs, weights)
    assert "test_resnet:map0@random full: 204,800 numbers a slice" in caplog.text
    assert "highpass-w15-128 full: 16,384 numbers a slice" in caplog.text
    assert "sketch" not in caplog.text
    check_embedding_sizes(catalog, CONFIG, pairs[1:], weights)  # large, but not beyond the memory


def test_the_command_refuses_before_it_embeds(challenge, tmp_path):
    arguments = ["--data", str(challenge), "--work", str(tmp_path), "--task", "membership", "--max-memory", "0.05"]
    with pytest.raises(UsageError, match="use test_resnet:sketch0@random, or give --allow-large-embeddings"):
        search.main([*arguments, "--backbones", "test_resnet:map0@random"])
    assert not (tmp_path / "embeddings").exists()


def test_no_default_embedding_is_large():
    defaults = {parse_backbone(name) for task in TASKS.values() for name, _ in task.default_pairs}
    assert SKETCH_NUMBERS <= LARGE == 4096
    for model in {b.model for b in defaults if b.needs_weights and b.features != "sketch"}:
        with torch.device("meta"):  # no time for weights
            assert create(model, 0).num_features <= LARGE
    assert max(_numbers({b.name for b in defaults if not b.needs_weights}, {}).values()) <= LARGE

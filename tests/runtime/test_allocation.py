"""How gansfp.runtime.embedding divides a Ray cluster: actors, blocks and batches, with and without GPUs."""

import pytest

from gansfp.runtime import embedding
from gansfp.runtime.embedding import GPU_BATCH, Workers, _allocate


@pytest.fixture
def cluster(monkeypatch):
    """Lets a test say which resources there are."""

    def have(**resources):
        monkeypatch.setattr(embedding.ray, "cluster_resources", lambda: resources)

    return have


@pytest.mark.parametrize(
    ("slices", "block", "actors"),
    [
        (40_000, 4 * GPU_BATCH, 2),  # an actor prepares a batch while its GPU computes the one before
        (10_000, -(-10_000 // 32), 2),  # 16 blocks for each of two actors
        (1_000, GPU_BATCH, 2),
        (200, GPU_BATCH, 1),  # a single block
    ],
)
def test_blocks_for_gpus_hold_several_batches_where_there_are_enough_slices(cluster, slices, block, actors):
    cluster(GPU=2.0, CPU=16.0)
    allocation = _allocate(slices, Workers(), None)
    assert (allocation.block, allocation.gpu_batch, allocation.most) == (block, GPU_BATCH, actors)
    assert allocation.on_gpus


def test_gpus_that_are_shared_or_yet_to_start(cluster):
    cluster(CPU=16.0)
    assert _allocate(100_000, Workers(gpus_per_actor=0.5), 3).most == 6
    assert not _allocate(100_000, Workers(), None).on_gpus


def test_cpus_take_small_blocks(cluster):
    cluster(CPU=2.0)
    assert [_allocate(slices, Workers(), None).block for slices in (10, 1_000, 100_000)] == [8, 32, 128]

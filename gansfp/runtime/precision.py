"""The precision "auto": that of the embeddings in WORK, else bfloat16 where all devices of the run are faster in it.

It is settled once, before an embedding is looked for or computed, because the precision is part of its identity. The
devices that embed are asked, not this process: it may run on a head without a GPU, or on another CPU.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gansfp.device import is_bfloat16_fast
from gansfp.embedding import shards
from gansfp.embedding.embedder import AUTO, COMPUTED_IN, EmbedConfig, identity
from gansfp.embedding.shards import Pair
from gansfp.networks.weights import Weights
from gansfp.runtime.cluster import ClusterConfig, start_ray, usable_gpus

GPU_SHARE = 0.01  # of a GPU, so that the question fits beside other work

log = logging.getLogger(__name__)


def settle_precision(
    config: EmbedConfig,
    images: Mapping[Pair, Mapping[str, str]],
    work: str,
    weights: Mapping[str, Weights],
    cluster: ClusterConfig,
) -> EmbedConfig:
    """Returns the configuration with "bfloat16" or "float32" in place of "auto"; the log says which, and why.

    images: for each pair, sha256 by image id, as embed() will ask for them. Where WORK has the vectors of all of them
    in one precision, this is it. Otherwise the devices are asked, for which Ray starts if it is not up. Without a
    network among the pairs "auto" remains, since no vector depends on it.
    """
    if config.precision != AUTO or not config.network_pairs:
        return config
    wanted = sum(len(images[pair]) for pair in config.network_pairs)
    done = {
        precision: _count_done(replace(config, precision=precision), images, work, weights) for precision in COMPUTED_IN
    }
    complete = [precision for precision in COMPUTED_IN if done[precision] == wanted]
    if len(complete) == 1:
        precision, reason = complete[0], "as the embeddings in WORK"
    else:
        if not ray.is_initialized():
            start_ray(cluster)
        precision, reason = _precision_of_devices(ray.get_runtime_context().get_job_id(), usable_gpus(cluster.gpus))
    log.info("precision: %s, %s", precision, reason)
    for other in COMPUTED_IN:
        if other != precision and done[other] > done[precision]:
            log.warning(
                "precision: WORK has %s embeddings of networks in %s, which are kept and not used; with --precision %s "
                "they are",
                f"{done[other]:,}",
                other,
                other,
            )
    return replace(config, precision=precision)


def _count_done(
    config: EmbedConfig, images: Mapping[Pair, Mapping[str, str]], work: str, weights: Mapping[str, Weights]
) -> int:
    """Returns how many vectors of networks WORK has under this configuration."""
    return sum(shards.count_done(work, identity(pair, config, weights), images[pair]) for pair in config.network_pairs)


@functools.cache
def _precision_of_devices(job: str, gpus: int) -> tuple[str, str]:
    """Returns the precision for the devices of the Ray cluster, and the reason in words.

    job: the id of this process' Ray job: all stages of a command get one answer. GPUs that an autoscaler has yet to
    start count as fast in bfloat16, as all since 2020 are, and CPUs that it has yet to start do not, since most are
    not. Where that is wrong, an actor says so, see gansfp.runtime.embedding_blocks.BlockReport.
    """
    resource = "GPU" if gpus else "CPU"
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource)]
    if nodes == [ray.get_runtime_context().get_node_id()] and not gpus:
        answers = [is_bfloat16_fast("cpu")]  # this machine: a new process would take seconds to say the same
    else:
        answers = _ask(nodes, gpus)
    if not answers:
        return ("bfloat16" if gpus else "float32"), f"for {resource}s that are yet to start"
    if all(answers):
        return "bfloat16", f"which is faster on the {resource}s"
    return (
        "float32",
        f"since bfloat16 is not faster on the {resource}s of {answers.count(False)} of {len(answers)} nodes",
    )


def _ask(nodes: list[str], gpus: int) -> list[bool]:
    """Returns the answers of the nodes, without those that are lost meanwhile."""
    # A task with a GPU has it as an argument of ray.remote: then its process ends with it, see tasks.py.
    question = ray.remote(num_cpus=0, num_gpus=GPU_SHARE if gpus else 0)(_is_bfloat16_fast_here)
    strategies = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    answers = []
    for reference in [question.options(scheduling_strategy=strategy).remote(bool(gpus)) for strategy in strategies]:
        with suppress(ray.exceptions.RayError):
            answers.append(ray.get(reference))
    return answers


def _is_bfloat16_fast_here(gpu: bool) -> bool:
    """Task: answers for the GPU of this task, or for this CPU, on which an actor runs where CUDA finds no GPU."""
    import torch

    return is_bfloat16_fast("cuda" if gpu and torch.cuda.is_available() else "cpu")

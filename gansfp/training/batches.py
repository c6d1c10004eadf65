"""Batches of examples, which threads read and collate while the network computes on the batches before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch.utils.data import default_collate

from gansfp.training.learner import Batch, Example, Examples

AHEAD = 4  # batches that are read while one is computed
READERS = 8  # threads that read files when a GPU computes


def read_batches(examples: Examples, parts: Sequence[np.ndarray], epoch: int, cuda: bool) -> Iterator[Batch]:
    """Yields the examples of each part, collated, in the order of the parts.

    parts: rows of the examples. cuda: whether a GPU computes; then more threads read, and the batches are in pinned
    memory, from which a GPU copies while the host goes on.
    """

    def collate(items: Sequence[Future[Example]]) -> Batch:
        batch: Batch = default_collate([item.result() for item in items])
        return {name: value.pin_memory() for name, value in batch.items()} if cuda else batch

    with ThreadPoolExecutor(READERS if cuda else 1) as readers:
        waiting: deque[Future[Batch]] = deque()
        for rows in parts:
            items = [readers.submit(examples.item, int(row), epoch) for row in rows]
            waiting.append(readers.submit(collate, items))  # after its items, so that it never waits for a thread
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        for batch in waiting:
            yield batch.result()

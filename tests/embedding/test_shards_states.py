"""Shards as a state machine: runs write, repeat and damage shards; each current image keeps its latest vector."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gansfp.embedding.shards import folder, read_embeddings, repair_and_list_done, write_shard

IDENTITY = {"backbone": "net", "weights": "0123", "view": "full", "mask": "", "size": "256", "precision": "float32"}
IDS = ("a", "b", "c", "d")


def vector(image_id, sha256):
    """Returns the vector of a file's content: 2 numbers."""
    return [float(ord(image_id)), float(sha256)]


class Shards(RuleBasedStateMachine):
    """Four images whose files change, and the folder of their shards.

    `current` holds the current hash of each image; `intact` the rows (id, hash) of each complete shard on disk.
    """

    @initialize()
    def start(self):
        self.folder = tempfile.TemporaryDirectory()
        self.work, self.current = self.folder.name, dict.fromkeys(IDS, "0")
        self.intact, self.truncated, self.contents = {}, set(), 0

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def write(self, images):
        vectors = np.array([vector(*item) for item in images.items()], np.float32)
        path = write_shard(self.work, IDENTITY, images, ["ok"] * len(images), [""] * len(images), vectors)
        self.intact[path] = set(images.items())
        self.truncated.discard(path)

    def done(self):
        """Returns the images whose current content is in a complete shard."""
        rows = set().union(*self.intact.values())
        return {image_id for image_id, sha256 in self.current.items() if (image_id, sha256) in rows}

    @rule(ids=st.sets(st.sampled_from(IDS), min_size=1))
    def write_a_shard(self, ids):
        """A run embeds some images again, as two runs at the same time do, or a repeated task."""
        self.write({image_id: self.current[image_id] for image_id in sorted(ids)})

    @rule()
    def embed_what_is_missing(self):
        missing = sorted(set(IDS) - self.done())
        if missing:
            self.write({image_id: self.current[image_id] for image_id in missing})

    @rule(image_id=st.sampled_from(IDS))
    def replace_an_image(self, image_id):
        self.contents += 1
        self.current[image_id] = str(self.contents)

    @rule(image_id=st.sampled_from(IDS))
    def restore_an_image(self, image_id):
        """An image gets its first content again."""
        self.current[image_id] = "0"

    @precondition(lambda self: self.intact)
    @rule(data=st.data(), share=st.sampled_from([0, 0.01, 0.5, 0.99]))
    def truncate_a_shard(self, data, share):
        path = data.draw(st.sampled_from(sorted(self.intact)))
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: int(share * len(content))])
        del self.intact[path]
        self.truncated.add(path)

    @precondition(lambda self: self.intact)
    @rule(data=st.data())
    def repeat_a_shard(self, data):
        """A second shard holds the same rows, as a killed run leaves them."""
        path = data.draw(st.sampled_from(sorted(self.intact)))
        copy = os.path.join(os.path.dirname(path), f"copy-{len(self.intact)}.parquet")
        Path(copy).write_bytes(Path(path).read_bytes())
        self.intact[copy] = self.intact[path]
        self.truncated.discard(copy)

    @rule()
    def repair(self):
        done = self.done()
        assert repair_and_list_done(self.work, IDENTITY, self.current) == done
        place = folder(self.work, ("net", "full"))
        names = os.listdir(place) if os.path.isdir(place) else []
        paths = [os.path.join(place, name) for name in names]
        tables = {path: pq.read_table(path, columns=["image_id", "sha256"]).to_pylist() for path in paths}
        self.intact = {path: {(row["image_id"], row["sha256"]) for row in rows} for path, rows in tables.items()}
        self.truncated.clear()
        rows = [(row["image_id"], row["sha256"]) for rows in tables.values() for row in rows]
        assert sorted(rows) == sorted((image_id, self.current[image_id]) for image_id in done)
        assert repair_and_list_done(self.work, IDENTITY, self.current) == done
        assert sorted(os.listdir(place) if names else []) == sorted(names)  # a second repair changes nothing

    @invariant()
    def every_current_image_is_read_with_its_latest_vector(self):
        if not hasattr(self, "work"):
            return
        done = {image_id: self.current[image_id] for image_id in sorted(self.done())}
        embeddings = read_embeddings(self.work, IDENTITY, done)
        assert embeddings.ok.all()
        assert embeddings.vectors.tolist() == [vector(*item) for item in done.items()]


TestShards = Shards.TestCase
TestShards.settings = settings(
    max_examples=60, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

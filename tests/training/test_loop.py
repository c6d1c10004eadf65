"""The training loop: equal to a plain loop, resumes after a stop, early stopping, memory, several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gansfp.errors import DataError, GansfpError, UsageError, WeightsError
from gansfp.networks.model_files import read_model
from gansfp.training import loop
from gansfp.training.loop import Settings, train

WEIGHTS = np.array([1.0, -2.0, 0.5], np.float32)


class Points:
    """Points on a plane; `noise` is drawn anew in every epoch, by index and epoch alone."""

    def __init__(self, n, seed=0, noise=0.01):
        self.x = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
        self.noise = noise
        self.seen = []

    def __len__(self):
        return len(self.x)

    def item(self, index, epoch):
        self.seen.append((epoch, index))
        shaken = np.random.default_rng([index, epoch]).normal() * self.noise
        return {"x": self.x[index], "y": np.float32(self.x[index] @ WEIGHTS + shaken)}


class Plane:
    def __init__(self, n=50, valid=20, dropout=0.0, noise=0.01):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Dropout(dropout), nn.Linear(3, 1))
        self.train, self.valid = Points(n, 1, noise), Points(valid, 2, noise)

    def losses(self, model, batch):
        return (model(batch["x"])[:, 0] - batch["y"]) ** 2

    def measure(self, model, batch):
        losses = self.losses(model, batch)
        return {"loss": losses.sum(), "count": torch.tensor(float(len(losses)))}

    def figures(self, sums):
        return {"loss": sums["loss"] / sums["count"]}


SHORT = Settings("sgd", 0.05, batch=16, epochs=6, patience=0)
IDENTITY = {"kind": "plane"}
CONTENT = (  # of model.json
    *("identity", "settings", "epochs", "steps", "best_epoch"),
    *("figures", "history", "seconds", "examples", "peak_memory"),
)


def run(folder, settings=SHORT, learner=None, report=None, identity=IDENTITY):
    return train(learner or Plane(), str(folder), settings, identity, "cpu", report)


def test_equals_plain_loop(tmp_path):
    record = run(tmp_path)
    plain = Plane()
    optimiser = torch.optim.SGD(plain.model.parameters(), lr=0.05, momentum=0.9)
    history = []
    for epoch in range(6):
        order = np.random.default_rng([0, epoch]).permutation(50)
        losses = []
        for start in range(0, 50, 16):
            items = [plain.train.item(i, epoch + 1) for i in order[start : start + 16]]
            x, y = (torch.tensor(np.stack([item[name] for item in items])) for name in "xy")
            optimiser.zero_grad()
            loss = ((plain.model(x)[:, 0] - y) ** 2).mean()
            loss.backward()
            optimiser.step()
            losses += [float(loss.detach())] * len(items)
        items = [plain.valid.item(i, 0) for i in range(20)]
        x, y = (torch.tensor(np.stack([item[name] for item in items])) for name in "xy")
        with torch.no_grad():
            history.append([np.mean(losses), float(((plain.model(x)[:, 0] - y) ** 2).mean())])
    losses = [[row["train_loss"], row["loss"]] for row in record.history]
    np.testing.assert_allclose(losses, history, rtol=1e-4)
    best = int(np.argmin([row[1] for row in history]))
    assert record.best_epoch == best + 1
    assert record.steps == 6 * 4
    content, tensors = read_model(str(tmp_path))
    assert content == json.loads(json.dumps(record.as_dict()))
    assert tuple(content) == CONTENT
    if best == 5:
        torch.testing.assert_close(tensors["1.weight"], plain.model[1].weight.detach())


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_stopped_training_resumes(tmp_path, stop):
    def interrupt(report):
        if report["epoch"] == stop:
            raise KeyboardInterrupt

    undisturbed = run(tmp_path / "whole", learner=Plane(dropout=0.5))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", learner=Plane(dropout=0.5), report=interrupt)
    assert (tmp_path / "parts" / "state.pt").exists()
    with pytest.raises(WeightsError, match="has not ended"):
        read_model(str(tmp_path / "parts"))
    again = Plane(dropout=0.5)
    epochs = []
    record = run(tmp_path / "parts", learner=again, report=lambda report: epochs.append(report["epoch"]))
    assert epochs == list(range(stop + 1, 7))
    assert {epoch for epoch, _ in again.train.seen[1:]} == set(range(stop + 1, 7))  # the first read shows the size
    assert [row["loss"] for row in record.history] == [row["loss"] for row in undisturbed.history]
    for name, tensor in read_model(str(tmp_path / "whole"))[1].items():
        assert torch.equal(tensor, read_model(str(tmp_path / "parts"))[1][name])
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["model.json", "model.safetensors"]


def test_a_checkpoint_has_the_fields_of_earlier_versions(tmp_path):
    def interrupt(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, report=interrupt)
    checkpoint = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(checkpoint) == {"told", "network", "optimiser", "state"}
    assert set(checkpoint["state"]) == {"epoch", "steps", "seconds", "best_epoch", "history", "best"}


def test_the_best_epoch_is_kept_and_patience_ends_the_training(tmp_path):
    class Worse(Plane):
        def figures(self, sums):
            self.epochs = getattr(self, "epochs", 0) + 1
            return {"loss": [3.0, 1.0, 2.0, 2.0, 2.0, 2.0][self.epochs - 1]}

    weights = []
    learner = Worse()
    keep = lambda report: weights.append(learner.model[1].weight.detach().clone())  # noqa: E731
    record = run(tmp_path, Settings("sgd", 0.05, 16, 6, patience=2), learner, keep)
    assert (record.best_epoch, record.epochs) == (2, 4)
    assert torch.equal(read_model(str(tmp_path))[1]["1.weight"], weights[1])
    assert record.figures["loss"] == 1.0


def test_max_steps_ends_within_an_epoch(tmp_path):
    record = run(tmp_path, Settings("sgd", 0.05, 16, 6, 0, max_steps=6))
    assert (record.steps, record.epochs) == (6, 2)


def test_without_validation_the_last_epoch_counts(tmp_path):
    assert run(tmp_path, learner=Plane(valid=0)).best_epoch == 6


@pytest.mark.parametrize("micro", [1, 3, 16])
def test_parts_of_a_batch_sum_to_it(tmp_path, micro, monkeypatch):
    whole = run(tmp_path / "whole")
    monkeypatch.setattr(loop, "CPU_PIXELS", micro * 256**2)
    parts = run(tmp_path / "parts")
    np.testing.assert_allclose(
        [row["loss"] for row in parts.history], [row["loss"] for row in whole.history], rtol=1e-4
    )


def test_larger_pictures_go_through_in_smaller_numbers(tmp_path):
    class Pictures(Plane):
        sizes = ()

        def __init__(self, side):
            super().__init__(n=16, valid=0)
            item = self.train.item
            self.train.item = lambda index, epoch: {**item(index, epoch), "pixels": np.zeros((side, side), np.uint8)}

        def losses(self, model, batch):
            self.sizes = (*self.sizes, len(batch["x"]))
            return super().losses(model, batch)

    for side, together in ((32, 16), (256, 16), (512, 4), (2048, 1)):
        learner = Pictures(side)
        run(tmp_path / str(side), Settings("sgd", 0.05, 16, 1, 0), learner)
        assert set(learner.sizes) == {together}


def test_a_large_state_is_written_seldom(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(loop, "write_state", lambda *_: written.append(1))
    monkeypatch.setattr(loop, "FAST_WRITE", -1.0)
    monkeypatch.setattr(loop, "WRITE_INTERVAL", 1e9)
    assert run(tmp_path).epochs == 6
    assert len(written) == 1


def test_out_of_memory_halves_what_goes_together(tmp_path):
    class Small(Plane):
        sizes = ()

        def losses(self, model, batch):
            self.sizes = (*self.sizes, len(batch["x"]))
            if len(batch["x"]) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().losses(model, batch)

        def measure(self, model, batch):
            return Plane.measure(Plane(), model, batch)

    learner = Small()
    record = run(tmp_path / "small", learner=learner)
    assert [size for size in learner.sizes if size > 5] == [16, 8]
    whole = run(tmp_path / "whole")
    np.testing.assert_allclose(record.figures["loss"], whole.figures["loss"], rtol=1e-4)


def test_a_finished_training_is_not_repeated(tmp_path):
    first = run(tmp_path)
    learner = Plane()
    assert run(tmp_path, learner=learner) == first
    assert learner.train.seen == []


def test_other_settings_or_examples_are_refused(tmp_path):
    run(tmp_path)
    before = (tmp_path / "model.json").read_bytes()
    with pytest.raises(UsageError, match=r"trained with epochs 6, got 7; name another folder"):
        run(tmp_path, Settings("sgd", 0.05, 16, 7, 0))
    with pytest.raises(UsageError, match="trained with kind 'plane', got 'sphere'"):
        run(tmp_path, identity={"kind": "sphere"})
    assert (tmp_path / "model.json").read_bytes() == before


def test_after_a_truncated_checkpoint_the_training_starts_again(tmp_path, caplog):
    def interrupt(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, report=interrupt)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:100])
    assert run(tmp_path).epochs == 6
    assert "the training starts again" in caplog.text


def test_a_loss_that_becomes_nan_is_an_error_of_one_line(tmp_path):
    with pytest.raises(GansfpError, match=r"the loss became NaN or infinite in epoch \d+; use a smaller .* \(--rate\)"):
        run(tmp_path, Settings("sgd", 0.999, 4, 50, 0), Plane(noise=1e30))
    assert not (tmp_path / "model.json").exists()


def test_no_examples(tmp_path):
    with pytest.raises(DataError, match="no examples"):
        run(tmp_path, learner=Plane(n=0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimiser": "lion"}, "optimiser: got 'lion', expected one of"),
        ({"rate": 0.0}, "learning rate: got 0.0"),
        ({"batch": 0}, "batch: got 0, expected a whole number of at least 1"),
        ({"epochs": 2.5}, "epochs: got 2.5"),
        ({"patience": -1}, "patience: got -1"),
    ],
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(UsageError, match=message):
        Settings(**wrong)


TWO_PROCESSES = """
import os, sys
sys.path[:0] = [{tests!r}, {root!r}]
import torch
from torch import distributed
from test_loop import SHORT, Plane, run
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://{store}", rank=int(sys.argv[1]), world_size=2)
run({folder!r}, learner=Plane(n={n}, valid={valid}))
"""


# One example to validate with, and one to learn from, are fewer than the processes.
@pytest.mark.parametrize(("n", "valid"), [(49, 21), (1, 1)])
def test_two_processes_learn_what_one_does(tmp_path, n, valid):
    tests = Path(__file__).parent
    places = {"tests": str(tests), "root": str(tests.parents[1]), "store": tmp_path / "store"}
    code = TWO_PROCESSES.format(**places, folder=str(tmp_path / "both"), n=n, valid=valid)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-c", code, str(rank)], env=environment) for rank in (0, 1)]
    try:
        assert [process.wait(120) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    run(tmp_path / "one", learner=Plane(n=n, valid=valid))
    one, two = (read_model(str(tmp_path / name)) for name in ("one", "both"))
    np.testing.assert_allclose(
        [row["loss"] for row in one[0]["history"]], [row["loss"] for row in two[0]["history"]], rtol=1e-4
    )
    torch.testing.assert_close(one[1]["1.weight"], two[1]["1.weight"])

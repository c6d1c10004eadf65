"""The heads of classifiers: losses against plain ones, a batch of one example, folded batch norms."""

import numpy as np
import timm
import torch

from gansfp.training.heads import HEADS, InputTransform, SliceLearner, has_folded_batch_norms


def test_losses_equal_plain_ones():
    rng = np.random.default_rng(0)
    labels = torch.tensor([0, 1, 1, 0])
    values = rng.normal(0, 2, (4, 2))
    logits, shares = torch.from_numpy(values), np.exp(values) / np.exp(values).sum(1, keepdims=True)
    np.testing.assert_allclose(HEADS["linear"].loss(logits, labels), -np.log(shares[range(4), labels]))
    np.testing.assert_allclose(HEADS["linear"].probabilities(logits), shares)
    one = logits[:, :1]
    p = 1 / (1 + np.exp(-one.numpy()[:, 0]))
    expected = -np.log(np.where(labels.numpy() == 1, p, 1 - p))
    np.testing.assert_allclose(HEADS["dropout_dense"].loss(one, labels), expected)
    np.testing.assert_allclose(HEADS["dropout_dense"].probabilities(one), np.stack([1 - p, p], 1))


def test_a_lone_example_has_a_finite_loss_and_gradient():
    network = timm.create_model("resnet10t", num_classes=2).train()
    learner = SliceLearner(network, [], [], InputTransform("resnet10t", 32, "full"), HEADS["linear"])
    batch = {"pixels": torch.zeros(1, 256, 256, dtype=torch.uint8), "label": torch.tensor([1])}
    losses = learner.losses(network, batch)
    assert losses.shape == (1,)
    losses.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    sums = learner.measure(network.eval(), batch)
    assert set(sums) == {"loss", "right", "count"}
    assert learner.figures({"loss": 6.0, "right": 3.0, "count": 4.0}) == {"loss": 1.5, "accuracy": 0.75}


def test_folded_batch_norms_keep_their_statistics():
    network = timm.create_model("resnet10t", num_classes=2)
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert not has_folded_batch_norms(network)  # a new network
    for layer in layers:
        layer.running_var.fill_(1 - layer.eps)
    assert has_folded_batch_norms(network)
    network.train()
    batch = {"pixels": torch.randint(0, 256, (4, 256, 256), dtype=torch.uint8), "label": torch.tensor([0, 1, 0, 1])}
    learner = SliceLearner(
        network, [], [], InputTransform("resnet10t", 32, "full"), HEADS["linear"], keeps_statistics=True
    )
    losses = learner.losses(network, batch)
    torch.testing.assert_close(losses, learner.losses(network.eval(), batch))
    losses.sum().backward()
    assert all(layer.bias.grad is not None and not layer.running_mean.any() for layer in layers)
    layers[0].running_mean[0] = 0.1
    assert not has_folded_batch_norms(network)  # a network after training

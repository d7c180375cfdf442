"""The Hessian's largest eigenvalue, against one computed whole in float64."""

from copy import deepcopy
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from model.config import Config
from model.curvature import curvature, moment_gradients, sample, span
from model.data import DeviceData
from model.train import TrainState, init_state, train
from search_spaces.curvature import brought_down, far_below

SMALL = Config(width=1, residual_layers="none", batch_size=4, epochs=1, peak_lr=0.1, label_smoothing=0.1)


def trained(config: Config, data: DeviceData) -> TrainState:
    state = init_state(config, data, seed=0)
    list(train(config, data, seed=0, state=state))
    return state


class Whole:
    """Loss and logits of the sample as functions of all weights in one vector, in float64."""

    def __init__(self, config: Config, data: DeviceData, state: TrainState) -> None:
        self.config, self.net = config, deepcopy(state.net).double().train()
        self.batches = [(images.double(), labels) for images, labels in sample(config, data, seed=0)]
        self.weights = dict(self.net.named_parameters())
        self.at = torch.cat([weight.detach().flatten() for weight in self.weights.values()])

    def logits(self, vector: torch.Tensor) -> list[torch.Tensor]:
        parts = vector.split([weight.numel() for weight in self.weights.values()])
        named = {name: part.view_as(w) for (name, w), part in zip(self.weights.items(), parts, strict=True)}
        return [functional_call(self.net, named, (images,)) for images, _ in self.batches]

    def loss(self, vector: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.logits(vector), self.batches, strict=True)
        losses = [cross_entropy(out, labels, label_smoothing=self.config.label_smoothing) for out, (_, labels) in pairs]
        return torch.stack(losses).mean()

    def moments(self, vector: torch.Tensor) -> torch.Tensor:
        """Mean, variance and skew of each class's logit: [3 * classes]."""
        out = torch.cat(self.logits(vector))
        off = out - out.mean(0)
        variance = off.square().mean(0)
        return torch.cat([out.mean(0), variance, (off**3).mean(0) / variance**1.5])


def jacobian(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    rows = torch.eye(len(values), dtype=values.dtype)
    return torch.autograd.grad(values, at, rows, is_grads_batched=True, retain_graph=True)[0]


@pytest.mark.parametrize("norm", ["batch", "frozen", "none"])
def test_eigenvalues_are_those_of_the_whole_hessian(norm: str, tiny_data: DeviceData) -> None:
    config = replace(SMALL, norm=norm)
    state = trained(config, tiny_data)
    found, whole = curvature(config, tiny_data, state, seed=0), Whole(config, tiny_data, state)
    at = whole.at.requires_grad_()
    (gradient,) = torch.autograd.grad(whole.loss(at), at, create_graph=True)
    hessian, gradients = jacobian(gradient, at), jacobian(whole.moments(at), at)
    directions, _ = torch.linalg.qr(gradients.T)
    beside = torch.eye(len(hessian), dtype=torch.float64) - directions @ directions.T
    expected = torch.linalg.eigvalsh(hessian)[-1].item()
    projected = torch.linalg.eigvalsh(beside @ hessian @ beside)[-1].item()
    assert found["projected_dims"] == 12 == len(gradients)
    assert found["lambda_max"] == pytest.approx(expected, rel=1e-3)
    assert found["lambda_max_projected"] == pytest.approx(projected, rel=1e-3)
    assert 0 < projected < expected


def test_directions_that_depend_on_others_count_once() -> None:
    columns = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 1e-3], [0.0, 0.0, 0.0]])
    basis = span(columns)
    assert basis.shape == (3, 2)
    torch.testing.assert_close(basis @ basis.T, torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)))


def test_moments_of_a_linear_net() -> None:
    """One weight, z = w x: the mean's gradient is mean(x), the variance's 2 w var(x), the third's 3 w^2 m3(x)."""
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 2.0)
    batches = [(torch.tensor([[0.0], [0.0]]), torch.zeros(2)), (torch.tensor([[0.0], [4.0]]), torch.zeros(2))]
    # mean 1, variance (1 + 1 + 1 + 9) / 4 = 3, third moment (-1 - 1 - 1 + 27) / 4 = 6
    assert moment_gradients(net, batches, [net.weight]).tolist() == [[1.0, 12.0, 72.0]]


def test_the_sample_follows_from_the_seed(tiny_data: DeviceData) -> None:
    first, again, other = (sample(SMALL, tiny_data, seed) for seed in (0, 0, 1))
    assert len(first) == 4 and all(images.shape == (4, 3, 32, 32) for images, _ in first)
    assert all(torch.equal(images, same) for (images, _), (same, _) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    few = sample(replace(SMALL, batch_size=30), tiny_data, 0)
    assert [len(labels) for _, labels in few] == [30, 30]


class Table:
    """Largest eigenvalues of the nets with each seed; of the projected ones, the given share is left."""

    scale = "small"

    def __init__(self, left: list[float] | None = None, **found: list[float]) -> None:
        self.cells = dict.fromkeys(found, Config())
        self._found, self._left = found, left or []

    def values(self, cell: str, what: str = "acc") -> list[float]:
        found = self._found[cell]
        return found if what == "lambda_max" else [x * share for x, share in zip(found, self._left, strict=True)]


@pytest.mark.parametrize(
    ("batch", "frozen", "none", "kind"),
    [
        ([1.0, 2.0], [9.0, 10.0], [40.0, 9.0], "reproduced"),
        ([1.0, 2.0], [7.0, 10.0], [40.0, 9.0], "undecided"),  # 2 is above a quarter of 7
        ([4.0, 5.0], [40.0, 50.0], [10.0, 15.0], "contradicted"),  # by one of the two
        ([1.0], [10.0], [10.0], "undecided"),
        ([1.0, 1.0], [10.0, 9.0], [], "undecided"),
    ],
)
def test_the_claim_of_far_lower_eigenvalues(
    batch: list[float], frozen: list[float], none: list[float], kind: str
) -> None:
    finding = far_below(cast(Any, Table(batch=batch, frozen=frozen, none=none)))
    assert finding.kind == kind
    if kind == "reproduced":
        assert "batch 1 to 2; frozen 9 to 10; none 9 to 40" in finding.text


@pytest.mark.parametrize(
    ("left", "kind"), [([0.4, 0.1], "reproduced"), ([0.6, 0.1], "undecided"), ([0.5, 0.9], "contradicted")]
)
def test_the_claim_of_a_few_directions(left: list[float], kind: str) -> None:
    finding = brought_down(cast(Any, Table(left=left, frozen=[9.0, 10.0], none=[40.0, 9.0])))
    assert finding.kind == kind
    assert f"frozen {min(left):.3g} to {max(left):.3g}" in finding.text
    assert brought_down(cast(Any, Table(left=left[:1], frozen=[9.0], none=[40.0]))).kind == "undecided"

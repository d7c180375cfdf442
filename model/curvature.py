"""How sharply the loss of a trained net bends: the largest eigenvalue of its Hessian (post 7, claims C26, C27)."""

from collections.abc import Callable, Iterable
from copy import deepcopy

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn.functional import cross_entropy

from model.augment import normalise
from model.config import Config
from model.data import DeviceData
from model.train import TrainState

BATCHES = 4  # post 7 has 80 of 256 images
EIGENVECTOR_TOLERANCE = 1e-2  # its square is the eigenvalue's
LANCZOS_VECTORS = 10
LEAST_SINGULAR_VALUE = 1e-5  # of unit directions, relative to the largest; below it there is only rounding


def curvature(config: Config, data: DeviceData, state: TrainState, seed: int) -> dict[str, float]:
    """The largest eigenvalue of the training loss's Hessian, before and after the logits' moments are projected out.

    Loss and derivatives are those of 4 batches of training images, not augmented, in fp32, with respect to the trained
    weights; weight decay is no part of it. Norms work as in training: batch norm with each batch's own statistics. The
    graph of all batches is kept for the second derivatives: about 1 MB an image at width 8, 8 MB at width 64.

    Returns:
        "lambda_max"; "lambda_max_projected", the same on the complement of the gradients of mean, variance and third
        moment of each class's logit (post 7: these span nearly all of the outlying eigenvectors); "projected_dims",
        how many directions those are, 3 times the classes at most.
    """
    assert not config.celu_alpha, "the fast CELU for CPUs has no second derivative"
    # on CPUs the second derivative of batch norm takes 1.5 x as long on channels-last activations
    net = deepcopy(state.net).train().to(memory_format=torch.contiguous_format)
    batches = sample(config, data, seed)
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    gradient = loss_gradient(net, config, batches, weights)
    directions = span(moment_gradients(net, batches, weights))

    def hessian(vector: torch.Tensor) -> torch.Tensor:
        slope = gradient @ vector.to(gradient.dtype)
        return flat(torch.autograd.grad(slope, weights, retain_graph=True)).double()

    def beside(vector: torch.Tensor) -> torch.Tensor:
        return vector - directions @ (directions.T @ vector)

    start = torch.randn(len(gradient), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = start.to(data.device)
    return {
        "lambda_max": largest_eigenvalue(hessian, start),
        "lambda_max_projected": largest_eigenvalue(lambda vector: beside(hessian(beside(vector))), beside(start)),
        "projected_dims": float(directions.shape[1]),
    }


def sample(config: Config, data: DeviceData, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Some whole batches of training images, normalised float32 [B, 3, 32, 32], and their labels [B]."""
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed)).to(data.device)
    whole = min(BATCHES, len(order) // config.batch_size)
    return [
        (normalise(data.train_images[index], data.mean, data.std).contiguous(), data.train_labels[index])
        for index in order[: whole * config.batch_size].split(config.batch_size)
    ]


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def loss_gradient(
    net: nn.Module, config: Config, batches: list[tuple[torch.Tensor, torch.Tensor]], weights: list[nn.Parameter]
) -> torch.Tensor:
    """Of the mean loss [weights], with the graph behind it, so that it can be differentiated again, and again."""
    gradient = torch.zeros(())
    for images, labels in batches:
        loss = cross_entropy(net(images), labels, label_smoothing=config.label_smoothing) / len(batches)
        gradient = flat(torch.autograd.grad(loss, weights, create_graph=True)) + gradient.to(loss)
    return gradient


def moment_gradients(
    net: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], weights: list[nn.Parameter]
) -> torch.Tensor:
    """Gradients of mean, variance and third central moment of each class's logit z over all images:
    [weights, 3 * classes].

    The gradient of a moment is the sum of the gradients of the images' z, times 1/N, 2 (z - mean) / N and
    3 ((z - mean)^2 - variance) / N. Skew, the third over the variance to the power 3/2, would span the same.
    """
    with torch.no_grad():
        logits = torch.cat([net(images) for images, _ in batches])
    off = logits - logits.mean(0)
    factors = torch.stack([torch.ones_like(off), 2 * off, 3 * (off.square() - off.square().mean(0))]) / len(off)
    classes = torch.eye(off.shape[1]).to(off)
    moments = (factors[:, None] * classes[:, None]).flatten(0, 1)  # [3 * classes, N, classes]
    total = torch.zeros(())
    for (images, _), parts in zip(batches, moments.split(len(batches[0][0]), dim=1), strict=True):
        out = net(images)
        rows = [flat(torch.autograd.grad(out, weights, part, retain_graph=True)) for part in parts]
        total = torch.stack(rows) + total.to(out)
    return total.T


def span(vectors: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis [n, rank] in fp64 of what the columns of vectors [n, m] span."""
    units = torch.nn.functional.normalize(vectors.double(), dim=0)
    basis, sizes, _ = torch.linalg.svd(units, full_matrices=False)
    return basis[:, sizes > LEAST_SINGULAR_VALUE * sizes[0]]


def largest_eigenvalue(product: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> float:
    """Of the symmetric matrix whose product with a vector [n] in fp64 is given, by Lanczos' method from `start`."""

    def matvec(vector: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(vector.ravel()).to(start.device)).cpu().numpy()

    matrix = LinearOperator((len(start), len(start)), matvec=matvec, dtype=np.float64)
    fixed = {"tol": EIGENVECTOR_TOLERANCE, "ncv": LANCZOS_VECTORS, "v0": start.cpu().numpy()}
    return float(eigsh(matrix, k=1, which="LA", return_eigenvectors=False, **fixed)[0])

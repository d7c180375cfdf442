"""Where norm and activation stand in a residual pair, and which solver trains best (Torch blog, 2016).

The blog used nets of 20 and 110 layers, one run each; here it is ResNet-9, which has two residual pairs. Each solver
has a grid of rates, and its best one by mean is compared; the best of a grid is flattered a little, SGD's as well.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from model.config import Config
from model.recipes import s0
from search_spaces.experiment import SMALL, TINY, Claim, Experiment, Figure, Finding, Results, Scale, higher

RATES = {
    "sgd": (0.2, 0.4, 0.8),
    "rmsprop": (1e-3, 1e-2),
    "adagrad": (1e-2, 1e-1),
    "adadelta": (1.0,),
    "adam": (2e-3, 1e-2),
}


def cells(**shared: Any) -> Mapping[str, Config]:
    base = replace(s0(), **shared)
    found = {}
    for norm, where in [("in_branch", "in the branch"), ("after_add", "after the sum")]:
        for act, at in [("in_branch", "in the branch"), ("after_add", "after the sum"), ("none", "none")]:
            found[f"norm {where}, activation {at}"] = replace(base, residual_norm=norm, residual_act=act)
    for solver, rates in RATES.items():
        for rate in rates:
            cell = replace(base, solver=solver, peak_lr=rate, lr_scale=1.0 if solver != "sgd" else base.lr_scale)
            if cell not in found.values():
                found[f"{solver}, rate {rate:g}"] = cell
    return found


def best_solver(results: Results) -> Finding:
    """SGD at its best rate against the best of all others."""

    def mean(cell: str) -> float:
        found = results.mean(cell)
        return found.mean if found else -1.0

    start = "norm in the branch, activation in the branch"  # this is SGD at 0.4
    sgd = max([start, *(cell for cell in results.cells if cell.startswith("sgd"))], key=mean)
    others = [cell for cell in results.cells if cell.partition(",")[0] in RATES and not cell.startswith("sgd")]
    return higher(sgd, max(others, key=mean))(results)


SPACE = Experiment(
    question="Where should norm and activation stand in a residual pair, and which solver trains it best?",
    scales={
        "tiny": Scale(cells=cells(epochs=1, **TINY), data="digits", seeds=1, why="It runs."),
        "small": Scale(
            cells=cells(epochs=8, **SMALL),
            data="cifar10",
            train_examples=10_000,
            seeds=4,
            why="Solvers differ by points at any size; two residual pairs can't show what 50 of them do.",
        ),
        "full": Scale(cells=cells(), data="cifar10", seeds=5, why="ResNet-9 at its published length."),
    },
    figures=[Figure(x="cell")],
    claims=[
        Claim(
            id="C38",
            sentence="Norm after the sum hurts deep nets",
            published="error of 110 layers 6.97% to 13.56%, of 20 layers 8.29% to 8.34%",
            judge=higher(
                "norm in the branch, activation in the branch", "norm after the sum, activation in the branch"
            ),
        ),
        Claim(
            id="C39",
            sentence="No activation after the sum helps a little",
            published="error of 110 layers 6.97% to 6.32%, of 20 layers 8.29% to 8.62%",
            judge=higher("norm in the branch, activation none", "norm in the branch, activation after the sum"),
        ),
        Claim(
            id="C40",
            sentence="SGD is the best solver",
            published="error of 110 layers: SGD 6.97%, RMSprop 7.68%, Adadelta 8.88%, Adagrad 11.45%",
            judge=best_solver,
        ),
    ],
)

"""Where norm and activation stand in a residual pair, and which solver trains best (Torch blog, 2016).

The pairs are those of the nets of He et al. 2015, of few and of many layers, trained as there, but for the learning
rate: it falls in a straight line over the 200 epochs, not in steps at epochs 80 and 120, after a warm-up of one epoch,
which the paper gives its 110 layers only. A norm after the sum stands on the way from pair to pair: what one does, 54
in a row do many times over.

Solvers train ResNet-9. Each has a grid of rates, and its best one by mean is compared; the best of a grid is flattered
a little, SGD's as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from model.config import Config
from model.recipes import s0
from search_spaces.experiment import (
    SMALL,
    TINY,
    Claim,
    Experiment,
    Figure,
    Finding,
    Judge,
    Results,
    Scale,
    higher,
    mean_acc,
)

PLACES = {"in_branch": "in the branch", "after_add": "after the sum", "none": "none"}
RATES = {
    "sgd": (0.2, 0.4, 0.8),
    "rmsprop": (1e-3, 1e-2),
    "adagrad": (1e-2, 1e-1),
    "adadelta": (1.0,),
    "adam": (2e-3, 1e-2),
}


def pairs(nets: Sequence[str], **shared: Any) -> Mapping[str, Config]:
    """The blog's four pairs in each net."""
    published: dict[str, Any] = {
        "width": 16,
        "epochs": 200,
        "batch_size": 128,
        "peak_lr": 0.1,
        "warmup_frac": 1 / 200,
        "weight_decay": 1e-4,
        "cutout_px": 0,
        "logit_scale": 1.0,
    }
    return {
        f"{net}, norm {PLACES[norm]}, activation {PLACES[act]}": Config(
            net=net, residual_norm=norm, residual_act=act, **{**published, **shared}
        )
        for net in nets
        for norm in ("in_branch", "after_add")
        for act in ("after_add", "none")
    }


def solvers(rates: Mapping[str, Sequence[float]], **shared: Any) -> Mapping[str, Config]:
    base = replace(s0(), **shared)
    return {
        f"{solver}, rate {rate:g}": replace(
            base, solver=solver, peak_lr=rate, lr_scale=base.lr_scale if solver == "sgd" else 1.0
        )
        for solver, grid in rates.items()
        for rate in grid
    }


def is_pair(cell: str) -> bool:
    return cell.startswith("resnet")


def at_depth(a: str, b: str) -> Judge:
    """Claims that pair a trains to more than pair b in the deepest net; the shallowest is named beside it."""

    def judge(results: Results) -> Finding:
        nets = list(dict.fromkeys(cell.partition(",")[0] for cell in results.cells if is_pair(cell)))
        deep, shallow = (higher(f"{net}, {a}", f"{net}, {b}")(results) for net in (nets[-1], nets[0]))
        return replace(deep, text=f"{deep.text}; {shallow.text}")

    return judge


def best_solver(results: Results) -> Finding:
    """SGD at its best rate against the best of all others."""
    cells = [cell for cell in results.cells if not is_pair(cell)]
    mean = partial(mean_acc, results)
    sgd = max((cell for cell in cells if cell.startswith("sgd")), key=mean)
    return higher(sgd, max((cell for cell in cells if not cell.startswith("sgd")), key=mean))(results)


NOT_DEEP = "20 layers are not deep"
SPACE = Experiment(
    question="Where should norm and activation stand in a residual pair, and which solver trains it best?",
    scales={
        "tiny": Scale(
            cells={
                **pairs(["resnet20"], width=2, epochs=1, batch_size=64),
                **solvers({solver: grid[:1] for solver, grid in RATES.items()}, epochs=1, **TINY),
            },
            data="digits",
            seeds=1,
            why="It runs.",
        ),
        "small": Scale(
            cells={
                **pairs(["resnet20", "resnet56"], width=4, epochs=4, batch_size=64, warmup_frac=1 / 5),
                **solvers(RATES, epochs=4, **SMALL),
            },
            data="cifar10",
            train_examples=8_000,
            seeds=3,
            why="27 norms in a row show from the first epochs on; solvers differ by points at any size.",
        ),
        "full": Scale(
            cells={**pairs(["resnet20", "resnet110"]), **solvers(RATES)},
            data="cifar10",
            seeds=3,
            why="The published nets at their published length, and ResNet-9 at its own.",
        ),
    },
    figures=[
        Figure(x="residual_norm", colour="residual_act", panel="net", where=is_pair),
        Figure(x="peak_lr", colour="solver", log_x=True, where=lambda cell: not is_pair(cell)),
    ],
    claims=[
        Claim(
            id="C38",
            sentence="Norm after the sum hurts deep nets",
            published="error of 110 layers 6.97% to 13.56%, of 20 layers 8.29% to 8.34%",
            judge=at_depth(
                "norm in the branch, activation after the sum", "norm after the sum, activation after the sum"
            ),
            not_at={"tiny": NOT_DEEP},
        ),
        Claim(
            id="C39",
            sentence="No activation after the sum helps a little",
            published="error of 110 layers 6.97% to 6.32%, of 20 layers 8.29% to 8.62%",
            judge=at_depth("norm in the branch, activation none", "norm in the branch, activation after the sum"),
            not_at={"tiny": NOT_DEEP},
        ),
        Claim(
            id="C40",
            sentence="SGD is the best solver",
            published="error of 110 layers: SGD 6.97%, RMSprop 7.68%, Adadelta 8.88%, Adagrad 11.45%",
            judge=best_solver,
        ),
    ],
)

"""Does one learning rate suit all nets, and does LARS do better than SGD with weight decay? (Post 6.)

Weight decay and batch norm together set each layer's relative step, whatever its gradients, which is what LARS does on
purpose. If so, the best rate is that of any net, and LARS gains nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from model.config import Config
from model.recipes import s0
from search_spaces.experiment import SMALL, TINY, Claim, Experiment, Figure, Finding, Results, Scale, higher, mean_acc

NETS = {"backbone": ("none", "none"), "residual 13": ("13", "none"), "extra 123": ("none", "123")}
NO_GAIN = 0.005


def cells(factors: Sequence[float], lars_rates: Sequence[float], **shared: Any) -> Mapping[str, Config]:
    base = replace(s0(), **shared)
    found = {
        f"{net}, rate x{factor:g}": replace(
            base, residual_layers=residual, extra_layers=extra, lr_scale=base.lr_scale * factor
        )
        for net, (residual, extra) in NETS.items()
        for factor in factors
    }
    return {**found, **{f"lars, rate {rate:g}": replace(base, solver="lars", peak_lr=rate) for rate in lars_rates}}


def one_rate(results: Results) -> Finding:
    """What the net that it suits least loses with the rate that is best over all nets, against its own best."""
    if not all(results.values(cell) for cell in results.cells):
        return Finding("undecided", "not all cells have results yet")
    factors = list(dict.fromkeys(cell.partition(", ")[2] for cell in results.cells if not cell.startswith("lars")))
    common = max(factors, key=lambda factor: sum(mean_acc(results, f"{net}, {factor}") for net in NETS))
    own = {net: max(factors, key=lambda factor: mean_acc(results, f"{net}, {factor}")) for net in NETS}
    lost = {net: mean_acc(results, f"{net}, {own[net]}") - mean_acc(results, f"{net}, {common}") for net in NETS}
    worst = max(lost, key=lambda net: lost[net])
    if own[worst] == common:
        return Finding("reproduced", f"{common} is best for every net: {', '.join(NETS)}")
    found = higher(f"{worst}, {common}", f"{worst}, {own[worst]}", by=-NO_GAIN)(results)
    return replace(found, text=f"{common} is best over all nets; at worst, {found.text}; 0.5 points less still counts")


def no_gain(results: Results) -> Finding:
    """LARS at its best rate against SGD at its own, on the same net."""
    sgd = max(
        (cell for cell in results.cells if cell.startswith("residual 13")), key=lambda cell: mean_acc(results, cell)
    )
    lars = max((cell for cell in results.cells if cell.startswith("lars")), key=lambda cell: mean_acc(results, cell))
    found = higher(sgd, lars, by=-NO_GAIN)(results)
    return replace(found, text=f"{found.text}; a gain of 0.5 points would count")


SPACE = Experiment(
    question="Does one learning rate suit all nets, and does LARS gain anything?",
    scales={
        "tiny": Scale(
            cells=cells((1, 2), (0.01,), epochs=1, **TINY),
            data="digits",
            seeds=1,
            why="Shows that it runs, nothing else.",
        ),
        "small": Scale(
            cells=cells((1 / 4, 1 / 2, 1, 2, 4), (0.01, 0.04, 0.16), epochs=8, **SMALL),
            data="cifar10",
            train_examples=10_000,
            seeds=3,
            why="A wrong rate costs points at any size, and nets of 5 to 8 convolutions differ as much as there.",
        ),
        "full": Scale(
            cells=cells((1 / 4, 1 / 2, 1, 2, 4), (0.01, 0.02, 0.04, 0.08)), data="cifar10", seeds=5, why="As published."
        ),
    },
    figures=[
        Figure(
            x="lr_scale",
            colour="residual_layers",
            panel="extra_layers",
            log_x=True,
            where=lambda cell: not cell.startswith("lars"),
        ),
        Figure(x="cell"),
    ],
    claims=[
        Claim(
            id="C23",
            sentence="One learning rate fits all architectures",
            published="the best rates are similar; no number",
            judge=one_rate,
        ),
        Claim(id="C24", sentence="LARS gains nothing", published="no significant gain; no number", judge=no_gain),
    ],
)

"""`python -m tune.spaces [NAME]`: which spaces and experiments there are, what they ask and what they cost here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.text import Text

import search_spaces
from model.command import run_command
from model.config import Config
from model.data import HELD_OUT
from model.meter import matmul_flops_per_s
from model.train import best_device
from search_spaces.domains import Domain
from search_spaces.experiment import Experiment, Scale
from search_spaces.space import SearchSpace
from tune.commands import python
from tune.limits import epoch_flops
from tune.lines import duration

IMAGES = {"digits": 1497, "cifar10": 50_000}
"""training images of a data set"""
SHARE = 0.5  # of the rate of a large matrix product that a small net reaches


@dataclass(frozen=True)
class Options:
    """List the spaces and experiments, or show one in full."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """of a space or an experiment, or the path of a file that defines one"""


def main(options: Options) -> None:
    console = Console(highlight=False, soft_wrap=True)
    flops_per_s = matmul_flops_per_s(best_device(), "fp32")
    basis = (
        f"Times: at {100 * SHARE:.0f}% of the {flops_per_s / 1e9:.0f} GFLOP/s that a large matrix product reaches on "
        f"this machine; evaluation and start-up come on top."
    )
    if options.name is None:
        _list(flops_per_s, console)
    else:
        _one(options.name, flops_per_s, console)
    console.print(basis, style="dim")


def scale_flops(scale: Scale) -> float:
    """Floating-point operations of all its trainings."""
    images = scale.train_examples or round(IMAGES[scale.data] * (1 - HELD_OUT))
    classes = 10
    return sum(count * config.epochs * epoch_flops(config, classes, images) for config, count in scale.trainings)


def _list(flops_per_s: float, console: Console) -> None:
    for name in search_spaces.names():
        found = search_spaces.definition(name)
        console.print(Text(name, style="bold"))
        if isinstance(found, SearchSpace):
            console.print(Text(f"  to search: {', '.join(found.domains)}"))
            continue
        console.print(Text(f"  {found.question} ({', '.join(claim.id for claim in found.claims)})"))
        console.print(Text(f"  --scale small: {_cost(found.scales['small'], flops_per_s)}", style="dim"))
    console.print(f"more of one: {python()} -m tune.spaces NAME")


def _cost(scale: Scale, flops_per_s: float) -> str:
    flops = scale_flops(scale)
    images = f"{scale.train_examples:,} images" if scale.train_examples else "all images"
    search = f"a search of about {scale.search.runs} trainings, then " if scale.search else ""
    trainings = (
        f"{search}{len(scale.cells)} cells x {scale.seeds} seed{'s' * (scale.seeds > 1)}, {scale.epochs:,} epochs"
    )
    time = duration(flops / flops_per_s / SHARE)
    return f"{trainings} on {images} of {scale.data}, {flops:.2g} FLOP, about {time} here"


def _one(name: str, flops_per_s: float, console: Console) -> None:
    found = search_spaces.definition(name)
    console.print(Text(name, style="bold"))
    if isinstance(found, SearchSpace):
        console.print(f"a space to search around {found.base.describe()}")
        _domains(found.domains, console)
        return
    console.print(Text(found.question))
    _scales(found, flops_per_s, console)
    console.print("claims:")
    for claim in found.claims:
        console.print(Text(f"  {claim.id}: {claim.sentence} ({claim.published})"))
        for scale, why in claim.not_at.items():
            console.print(Text(f"       not testable at {scale}: {why}"))
    console.print(f"run it: {python()} -m tune.search --space {name} --scale small --data PATH")


def _scales(experiment: Experiment, flops_per_s: float, console: Console) -> None:
    for name, scale in experiment.scales.items():
        console.print(Text(f"--scale {name}: {_cost(scale, flops_per_s)}"))
        console.print(Text(f"  {scale.why}"))
        if name == "small":
            if scale.search:
                _domains(scale.search.domains, console)
            for cell, config in scale.cells.items():
                console.print(Text(f"  {cell}: {_differing(config, scale)}"))


def _differing(config: Config, scale: Scale) -> str:
    """What the cell has that is not the same in all of them."""
    every = [cell.to_dict() for cell in scale.cells.values()]
    own = config.to_dict()
    return ", ".join(f"{name}={value}" for name, value in own.items() if any(each[name] != value for each in every))


def _domains(domains: Mapping[str, Domain], console: Console) -> None:
    for name, domain in domains.items():
        console.print(Text(f"  {name}: {domain_words(domain)}"))


def domain_words(domain: Domain) -> str:
    prior = f", prior {domain.prior}" if domain.prior is not None else ""
    condition = f", only if {domain.only_if}" if domain.only_if else ""
    return f"{domain}{prior}{condition}"


if __name__ == "__main__":
    run_command(main, Options, prog="python -m tune.spaces")

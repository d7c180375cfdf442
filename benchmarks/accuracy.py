"""Test accuracy of recipes over seeds, each trained net scored plainly and with test-time augmentation.

    python -m benchmarks.accuracy --data PATH --recipes s0 s8 --seeds 3 --set width=16 epochs=10 precision=bf16

prints a line per run and a table of mean and SD. With --out FILE the runs are kept there, and those it holds already
are not trained again. Variants of a recipe are written with a slash: --recipes s0 s0/cutout_px=0
"""

import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from model.command import run_command
from model.config import Config
from model.data import DeviceData, describe, take, to_device
from model.evaluate import evaluate
from model.recipes import choose
from model.sources import load
from model.train import best_device, init_state, train

VIEWS = ("none", "flip", "shift")


@dataclass(frozen=True)
class Options:
    """Train recipes on several seeds and score each net with every kind of test-time augmentation."""

    data: str = "auto"
    """auto, digits, cifar10, or the path of a data folder"""
    recipes: tuple[str, ...] = ("s0", "s8")
    """names, each followed by any number of /field=value"""
    seeds: int = 3
    """seeds 0, 1, ... for each"""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")] = ()
    """change fields of all recipes"""
    train_examples: int | None = None
    """use only so many of the training images"""
    threads: int | None = None
    """CPU threads (default: all cores)"""
    out: Path | None = None
    """keep the runs in this file (JSON lines)"""


def main(options: Options) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    dataset = load(options.data)
    if options.train_examples is not None:
        dataset = take(dataset, options.train_examples)
    data = to_device(dataset, best_device())
    print(describe(dataset))
    print(f"{data.device}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}")
    lines = options.out.read_text(encoding="utf-8").splitlines() if options.out and options.out.exists() else []
    known = [json.loads(line) for line in lines]
    images = f"{dataset.fingerprint}/{len(dataset.train_labels)}"
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.recipes}
    for seed in range(options.seeds):
        for name in options.recipes:
            config = _config(name, options)
            key = {"config": config.to_dict(), "seed": seed, "fingerprint": images}
            run = next((entry for entry in known if {field: entry[field] for field in key} == key), None)
            if run is None:
                run = {**key, **_run(config, data, seed), "recipe": name, "threads": torch.get_num_threads()}
                if options.out:
                    with options.out.open("a", encoding="utf-8") as file:
                        print(json.dumps(run), file=file)
            runs[name].append(run)
            accs = ", ".join(f"{views} {100 * run['accs'][views]:.2f}%" for views in VIEWS)
            print(f"{name}, seed {seed}: {accs}, {run['train_s']:.0f} s", flush=True)
    for name, entries in runs.items():
        config = _config(name, options)
        print(f"\n{name}, {config.epochs} epochs, n = {len(entries)}:")
        for views in VIEWS:
            accs = [100 * entry["accs"][views] for entry in entries]
            spread = f", SD {statistics.stdev(accs):.2f}" if len(accs) > 1 else ""
            print(f"  TTA {views:5}  mean {statistics.fmean(accs):.2f}%{spread}")
        print(f"  median training time {statistics.median(entry['train_s'] for entry in entries):.0f} s")


def _config(name: str, options: Options) -> Config:
    recipe, *changes = name.split("/")
    common = [text for texts in options.set for text in texts]
    return choose(recipe, None, [*common, *changes])


def _run(config: Config, data: DeviceData, seed: int) -> dict[str, Any]:
    state = init_state(config, data, seed)
    *_, last = train(config, data, seed=seed, state=state)
    accs = {views: evaluate(state.scored_net, replace(config, tta=views), data)[0] for views in VIEWS}
    return {"accs": accs, **asdict(last)}


if __name__ == "__main__":
    run_command(main, Options, prog="python -m benchmarks.accuracy")

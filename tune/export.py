"""`python -m tune.export RUN`: the best configs of a run as JSON files that `model.train` runs."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from model.command import run_command
from model.config import InputError, save_config
from tune.confirm import confirmed_rows
from tune.mirror import run_folder
from tune.run import Run, final_acc


@dataclass(frozen=True)
class Options:
    """Write the best configs of a run to RUN/best, confirmed ones first."""

    run: Annotated[str, tyro.conf.Positional]
    """the run folder, or the URI of a run in a store, which is then fetched into runs/"""
    top: int = 3
    """how many"""


def main(options: Options) -> None:
    if options.top < 1:
        raise InputError(f"--top {options.top}: it must be 1 or more")
    run = Run(run_folder(str(options.run), Path("runs"), Console(soft_wrap=True, highlight=False)))
    if not run.ranking():
        raise InputError(f"{options.run} has no trial that ran to the end: nothing to export; continue the search")
    rows = {row["trial"]: row for row in confirmed_rows(run)}  # best first
    ranking = sorted(
        run.ranking(), key=lambda trial: list(rows).index(trial.number) if trial.number in rows else len(rows)
    )
    folder = run.path / "best"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):  # an earlier export had other ranks
        old.unlink()
    for rank, trial in enumerate(ranking[: options.top], start=1):
        file = folder / f"{rank}-trial{trial.number}.json"
        manifest = run.manifest
        provenance: dict[str, Any] = {
            "run": run.name,
            "space": manifest.space_name,
            "trial": trial.number,
            "seed": trial.user_attrs["seed"],
            "val_acc": final_acc(trial),
            "val_note": f"one seed, {manifest.counts['val']} held-out images, best of {len(run.ranking())} full trials",
            "confirmed": rows.get(trial.number),
            "dataset": manifest.dataset,
            "fingerprint": manifest.fingerprint,
            "images": manifest.counts,
            "machine": manifest.machine,
            "versions": manifest.versions,
            "git_commit": manifest.git_commit,
            "same_again": _command(run, file, trial.user_attrs["seed"]),
        }
        save_config(file, run.config(trial), **provenance)
        confirmed = f", confirmed {100 * rows[trial.number]['mean_acc']:.2f}%" if trial.number in rows else ""
        print(f"{file}: trial {trial.number}, val acc {100 * final_acc(trial):.2f}%{confirmed}")
    print(f"run one as it ran in the search:\n  {_command(run, file, trial.user_attrs['seed'])}")


def _command(run: Run, file: Path, seed: int) -> str:
    """The command that trains the config on the search's split and seed and gives the search's numbers, on CPU bit for
    bit on the same machine."""
    manifest = run.manifest
    parts = ["python", "-m", "model.train", "--config", str(file), "--data", manifest.data, "--split", "val"]
    parts += ["--seed", str(seed), "--threads", str(manifest.threads)]
    if manifest.ranks > 1:
        parts += ["--ranks", str(manifest.ranks)]
    if manifest.train_examples is not None:
        parts += ["--train-examples", str(manifest.train_examples)]
    return shlex.join(parts)


if __name__ == "__main__":
    run_command(main, Options, prog="python -m tune.export")

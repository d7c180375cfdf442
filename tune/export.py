"""`python -m tune.export RUN`: the best configs of a run as JSON files that `model.train` runs, with the weights that
`tune.confirm` trained, or as the base of the next search."""

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pprint import pformat
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro
from optuna.trial import FrozenTrial

import search_spaces
from model.command import printable, run_command
from model.config import InputError, save_config
from model.files import write_whole
from model.weights import Record, load_weights
from tune.commands import python, quoted
from tune.confirmed import FILE, read_confirm
from tune.mirror import run_folder
from tune.model_card import model_card
from tune.panel import new_console
from tune.run import Run, final_acc

EXPORTED = r"\d+-trial\d+\.(json|md|safetensors)"
CONFIRM_FACTS = ("counts", "machine", "versions", "threads", "alpha", "practical_acc", "target_acc", "chance_acc")


@dataclass(frozen=True)
class Options:
    """Write the best configs of a run to a folder, confirmed ones first, the recommended one before all."""

    run: Annotated[str, tyro.conf.Positional]
    """the run folder, or the URI of a run in a store, which is then fetched into runs/"""
    top: int = 3
    """how many"""
    weights: bool = False
    """with the confirmed weights of each, as safetensors, and a model card"""
    as_base: bool = False
    """write the first of them to base.json too, and say how to start the next search from it"""
    out: Path | None = None
    """the folder to write into, in place of what an earlier export wrote there (default: RUN/best)"""


def main(options: Options) -> None:
    if options.top < 1:
        raise InputError(f"--top {options.top}: it must be 1 or more")
    run = Run(run_folder(str(options.run), Path("runs"), new_console()))
    confirm = _confirm(run)
    rows = {row["trial"]: row for row in confirm.get("rows", [])}  # best mean first
    trials = _ranked(run, confirm, rows)[: options.top]
    if not trials:
        from tune.announce import why_none_ended  # takes a second to load

        raise InputError(f"{options.run}: nothing to export: {'; '.join(why_none_ended(run))}")
    nets = _nets(run, trials, rows) if options.weights else {}
    if options.as_base:
        _check_base(run, trials[0])

    folder = options.out.absolute() if options.out else run.path / "best"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
            said = _write(Path(temporary), folder, run, trials, confirm, nets, options)
            _swap(Path(temporary), folder)
    except OSError as error:
        raise InputError(
            f"{folder} can't be written ({error.strerror}): make room, or give --out FOLDER; an earlier export is kept"
        ) from error
    for line in said:
        print(printable(line))


def _write(
    temporary: Path,
    folder: Path,
    run: Run,
    trials: list[FrozenTrial],
    confirm: dict[str, Any],
    nets: dict[int, tuple[Path, Record]],
    options: Options,
) -> list[str]:
    """Write an export that will be moved from `temporary` to `folder`; returns what to say of it, line by line."""
    said, rows = _headings(run, confirm), {row["trial"]: row for row in confirm.get("rows", [])}
    for rank, trial in enumerate(trials, start=1):
        file, row = folder / f"{rank}-trial{trial.number}.json", rows.get(trial.number)
        save_config(temporary / file.name, run.config(trial), **_provenance(run, trial, file, row, confirm))
        said.append(f"{quoted(file)}: trial {trial.number}, {_scores(trial, row)}")
        if trial.number in nets:
            source, record = nets[trial.number]
            weights, card = file.with_suffix(".safetensors"), file.with_suffix(".md")
            shutil.copyfile(source, temporary / weights.name)
            write_whole(temporary / card.name, model_card(file.stem, run, confirm, rows[trial.number], record))
            said.append(f"{quoted(weights)}: {_own_score(rows[trial.number])}; model card: {card.name}")
        elif options.weights:
            said.append(f"no confirmed weights of trial {trial.number}")
    first, best = folder / f"1-trial{trials[0].number}.json", trials[0]
    same_again = _command(_same_again(run, first, best))
    said += ["run the first as it ran in the search:", f"  {same_again}"]
    if best.number in nets:
        predict = _command(["model.predict", first.with_suffix(".safetensors"), "IMAGE", "..."])
        said += ["classify with it:", f"  {predict}"]
    if options.as_base:
        base, space = folder / "base.json", run.manifest.space_name
        provenance = _provenance(run, best, base, rows.get(best.number), confirm)
        save_config(temporary / base.name, run.config(best), **provenance)
        space_file = None if _is_known(run) else folder / f"{space if space.isidentifier() else 'space'}.py"
        if space_file:
            write_whole(temporary / space_file.name, _space_source(run))
            what = "the space, which was a file elsewhere; this is its content as the search read it"
            said.append(f"{quoted(space_file)}: {what}")
        next_search = _command(_next_search(run, space_file or space, base))
        said += [f"{quoted(base)}: trial {best.number}; search on from it:", f"  {next_search}"]
    return said


def _swap(temporary: Path, folder: Path) -> None:
    """Put the files of a whole export in place of an earlier one, which may have had other ranks."""
    names = sorted(file.name for file in temporary.iterdir())
    for name in names:
        (temporary / name).replace(folder / name)
    for old in folder.iterdir():
        if re.fullmatch(EXPORTED, old.name) and old.name not in names:
            old.unlink()


def _command(module_and_arguments: Sequence[str | Path]) -> str:
    parts = [quoted(part) if isinstance(part, Path) else shlex.quote(part) for part in module_and_arguments]
    return f"{python()} -m {' '.join(parts)}"


def _confirm(run: Run) -> dict[str, Any]:
    """What confirm.json holds; nothing before tune.confirm has run."""
    try:
        return read_confirm(run.path) or {}
    except (OSError, ValueError) as error:
        file = run.path / FILE
        raise InputError(f"{file} is damaged ({error}): run tune.confirm again, which keeps its trainings") from error


def _ranked(run: Run, confirm: dict[str, Any], rows: dict[int, dict[str, Any]]) -> list[FrozenTrial]:
    """The recommended trial, then other confirmed ones, then the rest of those that ran to the end."""
    recommended = (confirm.get("verdict") or {}).get("recommended")
    ranking = run.ranking()
    places = {number: place for place, number in enumerate(sorted(rows, key=lambda number: number != recommended))}
    full = {trial.number for trial in ranking}
    others = [t for t in run.study().get_trials(deepcopy=False) if t.number in rows and t.number not in full]
    return sorted([*ranking, *others], key=lambda trial: places.get(trial.number, len(places)))


def _nets(run: Run, trials: list[FrozenTrial], rows: dict[int, dict[str, Any]]) -> dict[int, tuple[Path, Record]]:
    """The confirmed weights of these trials, checked, by trial number.

    Raises:
        InputError: there are none, or a file is not what tune.confirm wrote for its trial.
    """
    nets = {}
    for trial in trials:
        name = rows.get(trial.number, {}).get("weights")
        if name is None:
            continue
        file = (run.path / str(name)).resolve()
        if not file.is_relative_to(run.path.resolve()):
            raise InputError(f"confirm.json has weights {name!r} outside of {run.path}: run tune.confirm again")
        _, record = load_weights(file)
        if record.config != run.config(trial):
            raise InputError(f"weights {file} are of another config than trial {trial.number}: run tune.confirm again")
        nets[trial.number] = (file, record)
    if not nets:
        raise InputError(
            f"--weights: run {run.name} has no confirmed weights of its best configs: run {python()} -m tune.confirm "
            f"{quoted(run.path)} first"
        )
    return nets


def _provenance(
    run: Run, trial: FrozenTrial, file: Path, row: dict[str, Any] | None, confirm: dict[str, Any]
) -> dict[str, Any]:
    """Where a config comes from: what the search saw of it, and what tune.confirm found, each with data and machine."""
    manifest, seed = run.manifest, trial.user_attrs["seed"]
    return {
        "run": run.name,
        "space": manifest.space_name,
        "trial": trial.number,
        "seed": seed,
        "val_acc": final_acc(trial) if trial.intermediate_values else None,
        "val_note": f"one seed, {manifest.counts['val']} held-out images, best of {len(run.ranking())} full trials",
        "confirmed": row,
        "verdict": confirm.get("verdict"),
        "confirm": {name: confirm[name] for name in CONFIRM_FACTS if name in confirm} or None,
        "dataset": manifest.dataset,
        "fingerprint": manifest.fingerprint,
        "images": manifest.counts,
        "machine": manifest.machine,
        "later_machines": manifest.machines[1:],
        "versions": manifest.versions,
        "git_commit": manifest.git_commit,
        "same_again": shlex.join(["python", "-m", *map(str, _same_again(run, file, trial))]),
    }


def _headings(run: Run, confirm: dict[str, Any]) -> list[str]:
    """What the accuracies are of, and what the confirmation said."""
    manifest, tested = run.manifest, confirm.get("counts", {}).get("test")
    test = f"test acc: {f'{tested:,}' if tested else 'the'} test images; " if confirm else ""
    val = f"val acc: {manifest.counts['val']:,} held-out training images"
    said = (confirm.get("verdict") or {}).get("text")
    return [f"{manifest.dataset}, fingerprint {manifest.fingerprint}; {test}{val}", *([said] if said else [])]


def _scores(trial: FrozenTrial, row: dict[str, Any] | None) -> str:
    """What is known of a config: the two accuracies are of other images and never compared."""
    val = f"val acc {100 * final_acc(trial):.2f}%" if trial.intermediate_values else "not finished"
    searched = f"in the search {val} (n = 1)"
    if not row:
        return f"{searched}, not confirmed"
    sd = f", SD {100 * row['sd_acc']:.2f}" if row.get("sd_acc") is not None else ""
    return f"test acc {100 * row['mean_acc']:.2f}% (mean of n = {row['n']} fresh seeds{sd}), {searched}"


def _own_score(row: dict[str, Any]) -> str:
    accs = row.get("accs")
    return f"the net of its first fresh seed{f', test acc {100 * accs[0]:.2f}%' if accs else ''}"


def _same_again(run: Run, file: Path, trial: FrozenTrial) -> list[str | Path]:
    """What trains the config on the search's split and seed and gives the search's numbers, on CPU bit for bit on the
    same machine."""
    manifest, epochs = run.manifest, run.metrics(trial.number)
    threads = epochs[-1].get("threads", manifest.threads) if epochs else manifest.threads
    parts: list[str | Path] = ["model.train", "--config", file, "--data", manifest.data, "--split", "val"]
    parts += ["--seed", str(trial.user_attrs["seed"]), "--threads", str(threads)]
    if manifest.ranks > 1:
        parts += ["--ranks", str(manifest.ranks)]
    return [*parts, *_examples(run)]


def _examples(run: Run) -> list[str]:
    examples = run.manifest.train_examples
    return ["--train-examples", str(examples)] if examples is not None else []


def _check_base(run: Run, trial: FrozenTrial) -> None:
    try:
        replace(run.space, base=run.config(trial), more_bases=())
    except InputError as error:  # a knob without effect is at its default, which may lie outside of the space
        raise InputError(f"--as-base: trial {trial.number} can't be a base of this space: {error}") from error


def _is_known(run: Run) -> bool:
    """Whether the run's space is the project's own. Any other is written beside the base, since its file may be
    anywhere."""
    manifest, space = run.manifest, run.space
    if manifest.space_name not in search_spaces.names():
        return False
    known = search_spaces.load(manifest.space_name, manifest.scale)
    return (dict(known.domains), known.coordinates) == (dict(space.domains), space.coordinates)


def _space_source(run: Run) -> str:
    content = pformat(run.space.to_dict(), width=110, sort_dicts=False)
    return (
        f'"""The search space of a run, as its run.json has it."""\n\n'
        f"from search_spaces.space import SearchSpace\n\nSPACE = SearchSpace.from_dict(\n{content}\n)\n"
    )


def _next_search(run: Run, space_name: str | Path, base: Path) -> list[str | Path]:
    """What searches the same space, data and objective around the base."""
    manifest, space = run.manifest, run.space
    parts: list[str | Path] = ["tune.search", "--space", space_name, "--base", base, "--data", manifest.data]
    parts += _examples(run)
    if manifest.objective != "accuracy":
        parts += ["--objective", manifest.objective]
    if manifest.target_acc is not None:
        parts += ["--target-acc", str(manifest.target_acc)]
    for limit, value in space.limits.items():
        parts += ["--limit", f"{limit}={value}"]
    return parts


if __name__ == "__main__":
    run_command(main, Options, prog="python -m tune.export")

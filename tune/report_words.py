"""What a report says in words: the verdict, warnings, what the rungs were worth, and how to reproduce a run."""

import math
import re
import shlex
from typing import Any

import search_spaces
from model.config import InputError
from search_spaces.space import Choice, Domain, LogUniform
from tune.commands import quoted
from tune.insights import FEWEST, Agreement, StoppedChance, agreements, stopped_chances
from tune.lines import percent, short
from tune.report_data import FAILED, RUNNING, STOPPED, RunData, Seen
from tune.run import Manifest

EDGE = 0.03  # of a domain's length: nearer to its end is at its boundary
REGION = 2.0  # times as often as everywhere do trials diverge in a region that is named


def verdict(data: RunData) -> tuple[list[str], str]:
    """What is confirmed, in sentences, and the command that tells more, if any."""
    confirm = data.confirm
    command = f"python -m tune.confirm {quoted(data.run.path)}"
    if confirm is None:
        ranking = data.ranking()
        if not ranking:
            resume = f"python -m tune.search --resume {quoted(data.run.path)}"
            return ["Nothing can be said yet: no trial has run to full length.", "To go on:"], resume
        best = ranking[0]
        found = f"{_named(best.number)} with a val accuracy of {percent(best.accs[-1])} (n = 1)"
        return [
            "Nothing is confirmed yet.",
            f"The search's best of {len(ranking):,} full-length trials is {found}, on held-out training images. It was "
            f"chosen for being high, so part of its lead is luck. Fresh seeds and the test set tell which is better:",
        ], command
    said = confirm.get("verdict") or {}
    if said.get("text"):
        return re.split(r"(?<=\.)\s+(?=[A-Z])", str(said["text"]), maxsplit=1), ""
    first = confirm["rows"][0]
    return [
        f"{_named(first['trial']).capitalize()} has the highest mean test accuracy: {percent(first['mean_acc'])} "
        f"(n = {first['n']}).",
        "This confirm.json is of an older version and has no verdict; for one:",
    ], command


def points(share: float) -> str:
    """A difference of accuracies, in points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", "\u2212")


def _named(number: int) -> str:
    return "the base (trial 0)" if number == 0 else f"trial {number}"


def warnings(data: RunData) -> list[str]:
    """What a reader should know before believing the rest."""
    found = [_few_full(data), *_boundaries(data), _too_wide(data), _diverged(data), _newer(data)]
    return [warning for warning in found if warning]


def _few_full(data: RunData) -> str:
    count = len(data.full)
    if count >= FEWEST:
        return ""
    return (
        f"Only {count} of {len(data.trials)} trials ran to full length: what is said of importances, responses and "
        f"rungs rests on them alone. --resume with more --trials adds some."
    )


def _boundaries(data: RunData) -> list[str]:
    best, found = data.best(), []
    if not best:
        return []
    for name, domain in data.run.space.domains.items():
        end = _end(domain, best.params.get(name))
        if end:
            found.append(
                f"The best value of {name}, {short(best.params[name])}, lies at the {end} end of its domain "
                f"({short(domain.low)} to {short(domain.high)}): a better one may lie beyond, if that makes sense."  # type: ignore[union-attr]
            )
    return found


def _end(domain: Domain, value: Any) -> str:
    """Which end of the domain the value lies at, if any."""
    if isinstance(domain, Choice) or value is None or domain.low == domain.high:
        return ""
    scale = math.log if isinstance(domain, LogUniform) else float
    share = (scale(value) - scale(domain.low)) / (scale(domain.high) - scale(domain.low))
    return "lower" if share < EDGE else "upper" if share > 1 - EDGE else ""


def _too_wide(data: RunData) -> str:
    """An effect smaller than its uncertainty."""
    best = data.best()
    row = (data.row(best.number) if best else None) or {}
    difference = row.get("to_base")
    if difference:
        if difference.get("ci95") is None:
            return f"Trial {row['trial']} has too few seeds for an interval of its difference to the base."
        low, high = difference["ci95"]
        if (high - low) / 2 > abs(difference["mean"]):
            return (
                f"The 95% interval of the difference between trial {row['trial']} and the base, "
                f"{points(low)} to {points(high)} points, is wider than the difference itself "
                f"({points(difference['mean'])})."
            )
        return ""
    ranking = data.ranking()
    if len(ranking) < 2 or data.confirm:
        return ""
    top, second, val = ranking[0].accs[-1], ranking[1].accs[-1], data.run.manifest.counts["val"]
    error = math.sqrt(top * (1 - top) / val) if 0 < top < 1 else 0.0
    if top - second >= 2 * error:
        return ""
    return (
        f"In the search the best leads the second by {100 * (top - second):.2f} points, less than twice the standard "
        f"error of one accuracy on {val:,} images ({100 * error:.2f}): their order may be luck."
    )


def _diverged(data: RunData) -> str:
    failed = [trial for trial in data.trials if trial.state == FAILED]
    if not failed:
        return ""
    said = f"{len(failed):,} of {len(data.trials):,} trials failed or diverged"
    regions = [region for name in data.run.space.domains for region in _regions(data, failed, name)]
    score, where, hits, there = max(regions, default=(0.0, "", 0, 0))
    if score < REGION or len(failed) < 3:
        reasons = {trial.reason for trial in failed if trial.reason}
        return f"{said}{f': {min(reasons)}' if len(reasons) == 1 else ''}."
    return f"{said}, {hits:,} of them with {where} ({there:,} were tried there)."


def _regions(data: RunData, failed: list[Seen], name: str) -> list[tuple[float, str, int, int]]:
    """(how many times as often as everywhere trials diverge there, the region, diverged there, tried there): the
    parts of a domain above and below a value that hold nine in ten of the diverged trials."""
    if isinstance(data.run.space.domains[name], Choice):
        return []
    bad = sorted(trial.params[name] for trial in failed if name in trial.params)
    tried = [trial.params[name] for trial in data.trials if name in trial.params]
    found = []
    for words, edge in [("at least", bad[len(bad) // 10]), ("at most", bad[-1 - len(bad) // 10])] if bad else []:
        inside = [value for value in tried if (value >= edge if words == "at least" else value <= edge)]
        hits = sum((value >= edge) if words == "at least" else (value <= edge) for value in bad)
        lift = (hits / len(inside)) / (len(bad) / len(tried))
        found.append((lift, f"{name} {words} {short(edge)}", hits, len(inside)))
    return found


def _newer(data: RunData) -> str:
    if not data.confirm:
        return ""
    known = {row["trial"] for row in data.rows}
    ranking = data.ranking()
    ended = [t for t in data.full if t.ended_s and t.ended_s[-1] > data.confirm_s]
    if ended:
        return f"{len(ended)} full-length trials ended after the confirmation: run tune.confirm again to include them."
    if ranking and ranking[0].number not in known:
        return f"The search's best, trial {ranking[0].number}, is not among the confirmed ones: run tune.confirm again."
    return ""


def running(data: RunData) -> str:
    """A sentence where the search has not come to its end."""
    count = sum(trial.state == RUNNING for trial in data.trials)
    if not count:
        return ""
    trials = "One trial is" if count == 1 else f"{count} trials are"
    return f"{trials} under way or waiting: the search is running or broke off, and this is how far it has come."


def rungs(data: RunData) -> list[str]:
    """Whether the grace was right, and what stopping may have cost."""
    if not data.rungs:
        return []
    found = [each for each in agreements(data) if each.is_rung]
    said = [_grace(found[0], data)] if found else []
    return said + [_chance(each) for each in stopped_chances(data)]


def _grace(first: Agreement, data: RunData) -> str:
    rho = f"rho = {first.rho:.2f}, 95% interval {first.low:.2f} to {first.high:.2f}, {first.n} full-length trials"
    later = [each for each in agreements(data) if each.epoch > first.epoch and each.low > 0.5]
    if first.low > 0.5:
        return f"The grace of {first.epoch} epochs was long enough: ranks there agree with the end ({rho})."
    if first.high < 0.5 and first.n >= 2 * FEWEST:
        better = f"; from epoch {later[0].epoch:g} on they do: --grace-epochs {later[0].epoch:g}" if later else ""
        return f"The grace of {first.epoch} epochs was too short: ranks there say little about the end ({rho}){better}."
    return f"Whether the grace of {first.epoch} epochs was right can't be told yet ({rho})."


def _chance(each: StoppedChance) -> str:
    stood = ", ".join(f"{rank:,}" for rank in each.ranks)
    chance = f"{100 * each.chance:.0f}%" if each.chance >= 0.01 else "less than 1%"
    return (
        f"Epoch {each.epoch}: {each.stopped:,} trials were stopped; the chance that the best would have been among "
        f"them is about {chance}. That is how often the best of a random half of the {each.n:,} full-length trials "
        f"would have been stopped here, had the same share of that half been; it is rather too high, since only "
        f"promoted trials are known to the end. Their best three stood at ranks {stood} of {each.reached:,} here."
    )


def counts(data: RunData) -> str:
    """How many trials came how far."""
    by_state = {state: sum(t.state == state for t in data.trials) for state in (STOPPED, FAILED, RUNNING)}
    parts = [f"{len(data.full):,} of full length"] + [f"{n:,} {state}" for state, n in by_state.items() if n]
    return f"{len(data.trials):,} started: {', '.join(parts)}"


def machine(facts: dict[str, Any]) -> str:
    gpus = facts.get("gpus") or []
    on = f"{len(gpus)} x {gpus[0]}, " if gpus else ""
    return f"{on}{facts.get('cores', '?')} cores of {facts.get('cpu', 'an unknown CPU')}{'' if gpus else ', no GPU'}"


def machines(manifest: Manifest) -> str:
    """Those that the search ran on, in turn."""
    return "; then ".join(map(machine, manifest.machines))


def settings(data: RunData) -> dict[str, str]:
    """Options of tune.search by name, those that are not at their default; with epochs and width always."""
    m, base = data.run.manifest, data.run.space.base
    given: dict[str, Any] = {"space": m.space_name, "scale": m.scale, "data": m.data, "trials": m.trials}
    if m.scale:
        given |= {"train-examples": m.train_examples, "seed": m.seed or None}
        return {name: str(value) for name, value in given.items() if value is not None}
    given |= {"budget": m.budget}
    given |= {"epochs": base.epochs, "width": base.width, "train-examples": m.train_examples}
    given |= {"objective": m.objective if m.objective != "accuracy" else None, "target-acc": m.target_acc}
    given |= {"sampler": m.sampler if m.sampler != "gp" else None}
    asha = m.scheduler == "asha"
    given |= {"scheduler": None if asha else m.scheduler, "grace-epochs": m.grace_epochs if asha else None}
    given |= {"reduction-factor": m.reduction_factor if asha and m.reduction_factor != 3 else None}
    given |= {"seed": m.seed or None, "cpus-per-trial": m.cpus_per_trial, "gpus-per-trial": m.gpus_per_trial or None}
    given |= {"ranks-per-trial": m.ranks if m.ranks > 1 else None, "slots": m.slots}
    return {name: f"{v:g}" if isinstance(v, float) else str(v) for name, v in given.items() if v is not None}


def reproduce(data: RunData) -> tuple[list[str], list[str]]:
    """The commands of the whole way, and what they can't say."""
    run, limits = data.run, data.run.space.limits
    parts, notes = ["python", "-m", "tune.search"], []
    for name, value in settings(data).items():
        parts += [f"--{name}", value]
    try:
        standard = search_spaces.load(run.manifest.space_name, run.manifest.scale)
        if dict(standard.domains) != dict(run.space.domains):
            notes.append("The space of that name has other domains today: run.json has those of this run.")
        base = standard.base.to_dict()
        changed = {
            name: value
            for name, value in run.space.base.to_dict().items()
            if value != base[name] and (run.manifest.scale or name not in ("epochs", "width"))
        }
        if changed:
            parts += ["--set", *(f"{name}={_assigned(value)}" for name, value in changed.items())]
        if run.space.more_bases != standard.more_bases and run.space.more_bases:
            notes.append("Further bases (--base) are in run.json.")
    except InputError:
        notes.append(
            "The space came from a file of its own: give its path to --space; run.json has its domains and base."
        )
    for name, limit in limits.items():
        parts += ["--limit", f"{name}={limit:g}"]
    folder = quoted(run.path)
    if run.manifest.scale:
        top = [f"python -m tune.claims {folder}"]
    else:
        top = [f"python -m tune.confirm {folder}", f"python -m tune.export {folder}  # prints what repeats a trial"]
    return [shlex.join([*parts, "--name", run.name]), *top, f"python -m tune.report {folder}"], notes


def _assigned(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

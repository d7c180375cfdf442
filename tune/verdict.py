"""What fresh seeds show of each config, in numbers and in words."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tune.evidence import judge, mean_interval, more_seeds, share_interval
from tune.halving import Race

RESAMPLES = 2000

Result = Mapping[str, Any]
"""a finished training as confirm/runs.jsonl has it"""


def candidate_row(
    race: Race, results: Mapping[int, Sequence[Result]], number: int, target: float | None
) -> dict[str, Any]:
    """The numbers of one candidate; accuracies are shares, `ci95_acc` holds at any time, `to_base` for all at once.

    Args:
        results: of each candidate, in the order of the seeds.
        target: accuracy that a training is wanted to reach.
    """
    own = results[number]
    accs = [result["acc"] for result in own]
    found = mean_interval(accs, race.resolution)
    reached = sum(acc >= target for acc in accs) if target is not None else 0
    peaks = [result["peak_mib"] for result in own if result.get("peak_mib") is not None]
    return {
        "trial": number,
        "n": found.n,
        "mean_acc": found.mean,
        "sd_acc": statistics.stdev(accs) if len(accs) > 1 else None,
        "ci95_acc": [max(0.0, found.low), min(1.0, found.high)] if math.isfinite(found.high) else None,
        "accs": accs,
        "seeds": [result["seed"] for result in own],
        "target": {"k": reached, "n": found.n, "ci95": share_interval(reached, found.n)}
        if target is not None
        else None,
        "median_train_s": statistics.median(result["train_s"] for result in own),
        "worst_train_s": max(result["train_s"] for result in own),
        "flops": max((result["flops"] for result in own if result.get("flops")), default=None),  # one may have diverged
        "peak_mib": max(peaks) if peaks else None,
        "diverged": sum(result["diverged"] for result in own),
        "to_base": _to_base(race, {number: accs, race.base: [result["acc"] for result in results[race.base]]}, number),
    }


def _to_base(race: Race, accs: Mapping[int, Sequence[float]], number: int) -> dict[str, Any] | None:
    if number == race.base:
        return None
    found = race.to_base(accs, number)
    kind = judge(found, race.practical, race.saves(number))
    more = None
    if kind == "undecided":
        more = more_seeds(found, accs[number], accs[race.base], race.practical, race.alpha, race.saves(number))
    return {
        "n": found.n,
        "mean": found.mean,
        "ci95": [found.low, found.high] if math.isfinite(found.high) else None,
        "form": found.form,
        "correlation": found.correlation,
        "kind": kind,
        "more_seeds": more,
    }


def first_shares(accs: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """How stable the order is: of RESAMPLES resamples of every candidate's seeds, the share in which it is first."""
    rng = np.random.default_rng(0)
    means = np.stack([rng.choice(own, (RESAMPLES, len(own))).mean(axis=1) for own in accs.values()])
    ties = means == means.max(axis=0)
    return dict(zip(accs, (ties / ties.sum(axis=0)).mean(axis=1).tolist(), strict=True))


def verdict(race: Race, rows: Sequence[dict[str, Any]], full_trials: int) -> dict[str, Any]:
    """Who wins, who is recommended, and why, in plain sentences.

    Args:
        rows: of `candidate_row`, with `search_val_acc`; the base among them.
        full_trials: of the search, from which the challengers were chosen.
    """
    by_number = {row["trial"]: row for row in rows}
    base = by_number[race.base]
    left = race.rounds({row["trial"]: row["accs"] for row in rows})[-1][1]
    left = [number for number in left if number in by_number]
    if not left:
        return {
            "kind": "undecided",
            "trial": race.base,
            "recommended": race.base,
            "text": f"There is nothing to compare: the base is the only config. It reaches {_mean(base)}.",
        }
    winner = max((by_number[number] for number in left), key=lambda row: row["mean_acc"])
    found, kind = winner["to_base"], winner["to_base"]["kind"]
    decided = {"better": winner, "no worse": winner, "worse": base, "no better": base, "tie": _cheaper(winner, base)}
    recommended = decided.get(kind, winner if found["mean"] > 0 else base)
    text = [_sentence(race, winner, recommended), _form(found), _cost(winner, base)]
    if winner.get("search_val_acc") is not None:
        text.append(
            f"In the search trial {winner['trial']} had {100 * winner['search_val_acc']:.2f}% (one seed, held-out "
            f"images, {full_trials} full-length trials to choose from); here it has {_mean(winner)}."
        )
    text += [
        f"{row['diverged']} of {row['n']} trainings of trial {row['trial']} diverged and count as chance."
        for row in rows
        if row["diverged"]
    ]
    sentences = " ".join(each for each in text if each)
    return {"kind": kind, "trial": winner["trial"], "recommended": recommended["trial"], "text": sentences}


def _sentence(race: Race, winner: dict[str, Any], recommended: dict[str, Any]) -> str:
    found, trial, practical = winner["to_base"], f"Trial {winner['trial']}", f"{100 * race.practical:g}"
    seeds = f"{found['n']} fresh seed{'s' if found['n'] > 1 else ''} each"
    by = f"{100 * found['mean']:+.2f} points of test accuracy"
    held = f"{by} (95% interval {_points(found['ci95'])}, {seeds})"
    if found["kind"] == "better":
        return f"{trial} is better than the base: {held}. Take trial {winner['trial']}."
    if found["kind"] == "worse":
        return f"{trial}, the best of the challengers, is worse than the base: {held}. Take the base."
    if found["kind"] == "tie":
        which = "the base" if recommended["trial"] == race.base else f"trial {recommended['trial']}"
        return (
            f"{trial} and the base tie: {held}, within the {practical} points that count as no difference. Take "
            f"{which}: it is the cheaper one."
        )
    if found["kind"] == "no worse":
        return (
            f"{trial} is cheaper than the base and no worse by more than the {practical} points that count as no "
            f"difference: {held}. Take trial {winner['trial']}."
        )
    if found["kind"] == "no better":
        return (
            f"{trial} is dearer than the base and no better by more than the {practical} points that count as no "
            f"difference: {held}. Take the base."
        )
    if found["more_seeds"] is None:
        more = "With this difference and spread no number of seeds within reach would decide."
        if found["n"] < 2:
            more = "One seed shows no spread: --seeds 2 or more."
    else:
        total = found["n"] + found["more_seeds"]
        more = (
            f"If difference and spread stay what they are, about {found['more_seeds']} more seeds each would decide, "
            f"{2 * found['more_seeds']} trainings: --seeds {total}."
        )
    return f"Undecided: {trial.lower()} against the base is {held}. {more}"


def _form(found: dict[str, Any]) -> str:
    if found["correlation"] is None:
        return ""
    known = f"correlation over {found['n']} seeds {found['correlation']:+.2f}"
    if found["form"] == "paired":
        return f"Pairing the common seeds makes the interval narrower ({known})."
    return f"Pairing the common seeds doesn't make the interval narrower ({known}), so the unpaired form carries it."


def _cost(row: dict[str, Any], base: dict[str, Any]) -> str:
    if not row["flops"] or not base["flops"] or row["flops"] == base["flops"]:
        return ""
    share = 100 * row["flops"] / base["flops"]
    return f"A training of trial {row['trial']} takes {share:.1f}% of the base's floating-point operations."


def _cheaper(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The one with fewer floating-point operations; where they are as many, with the shorter median time."""
    return min(a, b, key=lambda row: (row["flops"] or math.inf, row["median_train_s"]))


def _mean(row: dict[str, Any]) -> str:
    spread = f", SD {100 * row['sd_acc']:.2f}" if row["sd_acc"] is not None else ""
    return f"{100 * row['mean_acc']:.2f}% (n = {row['n']}{spread})"


def _points(interval: Sequence[float] | None) -> str:
    return f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}" if interval else "still unbounded"

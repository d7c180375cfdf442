"""Params as numbers: `shares`, one per domain, for drawing and moving them, and `features` for a model.

A share lies in [0, 1]: the part of the domain below the value, in the domain's own scale.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from search_spaces.space import Choice, Domain, IntUniform, LogUniform, SearchSpace, Uniform
from tune.gp import Array

ABSENT = 0.5  # stands for a parameter that doesn't exist in a trial


def levels(domain: Domain) -> int:
    """How many values the domain has; 0 is any number."""
    match domain:
        case IntUniform(low, high):
            return high - low + 1
        case Choice(choices):
            return len(choices)
        case LogUniform(low, high) | Uniform(low, high):
            return int(low == high)


def params_at(space: SearchSpace, shares: Array) -> dict[str, Any]:
    """The params at these shares, [d]: those that exist there."""
    pairs = zip(space.domains.items(), map(float, shares), strict=True)
    values = {name: value_at(domain, share) for (name, domain), share in pairs}
    return {name: values[name] for name in space.active(values)}


def value_at(domain: Domain, share: float) -> Any:
    """The domain's value at this share."""
    match domain:
        case LogUniform(low, high):
            return min(max(low * (high / low) ** share, low), high)
        case Uniform(low, high):
            return min(max(low + share * (high - low), low), high)
        case IntUniform(low, high):
            return min(low + int(share * (high - low + 1)), high)
        case Choice(choices):
            return choices[min(int(share * len(choices)), len(choices) - 1)]


def shares_of(space: SearchSpace, params: Mapping[str, Any]) -> Array:
    """The shares of these params, [d]; integers and choices in the middle of theirs. ABSENT stands for a parameter
    that they lack; a value outside of its domain (of another search) goes to the nearest end."""
    return np.array(
        [_share(domain, params[name]) if name in params else ABSENT for name, domain in space.domains.items()]
    )


def _share(domain: Domain, value: Any) -> float:
    match domain:
        case LogUniform(low, high):
            share = math.log(max(value, low) / low) / math.log(high / low) if high > low else ABSENT
        case Uniform(low, high):
            share = (value - low) / (high - low) if high > low else ABSENT
        case IntUniform(low, high):
            share = (value - low + 0.5) / (high - low + 1)
        case Choice(choices):
            share = (choices.index(value) + 0.5) / len(choices) if value in choices else ABSENT
    return min(max(share, 0.0), 1.0)


def features(space: SearchSpace, shares: Array) -> Array:
    """What a model sees of shares, [n, d] -> [n, k]: numbers as they are, a choice of three or more as one number per
    value (their order means nothing), ABSENT for what doesn't exist."""
    columns = []
    indices = _indices(space, shares)
    for place, (name, domain) in enumerate(space.domains.items()):
        exists = _exists(space, name, indices)[:, None]
        if name in indices:
            count = levels(domain)
            index = indices[name][:, None]
            several = isinstance(domain, Choice) and count > 2
            part = (index == np.arange(count)).astype(float) if several else (index + 0.5) / count
        else:
            part = shares[:, [place]]
        columns.append(np.where(exists, part, ABSENT))
    return np.hstack(columns)


def width(space: SearchSpace) -> int:
    """Columns of `features`."""
    return features(space, np.full((1, len(space.domains)), ABSENT)).shape[1]


def _indices(space: SearchSpace, shares: Array) -> dict[str, Any]:
    """Which value it is, [n], for the domains that have a countable number of them."""
    found = {}
    for place, (name, domain) in enumerate(space.domains.items()):
        if isinstance(domain, IntUniform | Choice):
            found[name] = np.minimum((shares[:, place] * levels(domain)).astype(int), levels(domain) - 1)
    return found


def _exists(space: SearchSpace, name: str, indices: dict[str, Any]) -> Any:
    """Whether the parameter exists, [n]."""
    result = np.ones(len(next(iter(indices.values()), [0])), bool) if indices else np.array([True])
    for other, values in (space.domains[name].only_if or {}).items():
        domain = space.domains[other]
        match domain:
            case Choice(choices):
                allowed = [choices.index(value) for value in values]
            case IntUniform(low, _):
                allowed = [value - low for value in values]
            case _:
                raise AssertionError(f"{other} can't decide")
        result = result & np.isin(indices[other], allowed) & _exists(space, other, indices)
    return result

"""Params as points of the unit cube, for models that know numbers only."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from search_spaces.space import Choice, Domain, IntUniform, LogUniform, SearchSpace, Uniform
from tune.gp import Array

ABSENT = 0.5  # stands for a parameter that doesn't exist in a trial


def width(domain: Domain) -> int:
    """Coordinates of a parameter: one, but for a choice of three or more, which has one per value."""
    return len(domain.choices) if isinstance(domain, Choice) and len(domain.choices) > 2 else 1


def dimensions(space: SearchSpace) -> int:
    return sum(width(domain) for domain in space.domains.values())


def to_cube(space: SearchSpace, params: Mapping[str, Any]) -> Array:
    """The point of these params, [d]; parameters that they lack are ABSENT. A value outside of its domain (of another
    run) goes to the nearest end; a choice that the domain doesn't have is ABSENT."""
    point: list[float] = []
    for name, domain in space.domains.items():
        if name not in params:
            point += [ABSENT] * width(domain)
            continue
        value = params[name]
        match domain:
            case LogUniform(low, high):
                share = math.log(max(value, low) / low) / math.log(high / low) if high > low else ABSENT
                point.append(min(share, 1.0))
            case Uniform(low, high):
                share = (value - low) / (high - low) if high > low else ABSENT
                point.append(min(max(share, 0.0), 1.0))
            case IntUniform(low, high):
                # the middle of the value's share of [0, 1], so that all values are as likely
                point.append((min(max(value, low), high) - low + 0.5) / (high - low + 1))
            case Choice(choices) if value not in choices:
                point += [ABSENT] * width(domain)
            case Choice(choices) if width(domain) == 1:
                point.append((choices.index(value) + 0.5) / len(choices))
            case Choice(choices):
                point += [float(choice == value) for choice in choices]
    return np.array(point)


def from_cube(space: SearchSpace, point: Array) -> dict[str, Any]:
    """The params at a point, [d]: those that exist there."""
    values: dict[str, Any] = {}
    start = 0
    for name, domain in space.domains.items():
        part = point[start : start + width(domain)]
        start += width(domain)
        share = float(part[0])
        match domain:
            case LogUniform(low, high):
                values[name] = min(max(low * (high / low) ** share, low), high)
            case Uniform(low, high):
                values[name] = min(max(low + share * (high - low), low), high)
            case IntUniform(low, high):
                values[name] = min(low + int(share * (high - low + 1)), high)
            case Choice(choices) if width(domain) == 1:
                values[name] = choices[min(int(share * len(choices)), len(choices) - 1)]
            case Choice(choices):
                values[name] = choices[int(np.argmax(part))]
    return {name: values[name] for name in space.active(values)}

"""Domains: the values that one parameter of a search may take, and the trials in which it exists.

Every kind takes two keyword-only extras. `prior` is the value that somebody believes is best, where sampling may lean
to. `only_if` names other domains of the space with the values that bring this parameter to life, as in
`Uniform(0.5, 0.99, only_if={"solver": ("sgd", "lars")})`; all of them must hold.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from model.config import InputError


def _extra() -> Any:
    """A keyword-only attribute: no part of `__match_args__`, of the repr or, being a dict maybe, of the hash."""
    return field(default=None, kw_only=True, repr=False, hash=False)


@dataclass(frozen=True)
class LogUniform:
    """A number from low to high, both included, whose logarithm is uniform: for factors. The unit is the parameter's.

    Raises:
        InputError: the bounds are not finite numbers with 0 < low <= high, `prior` lies outside of them, or `only_if`
            maps no names to tuples.
    """

    low: float
    high: float
    prior: float | None = _extra()
    only_if: Mapping[str, tuple[Any, ...]] | None = _extra()

    def __post_init__(self) -> None:
        _make_floats(self)
        if self.low <= 0:
            raise InputError(f"`low > 0` must hold for LogUniform, but got low={self.low:g}, high={self.high:g}")
        _check_extras(self)

    def contains(self, value: Any) -> bool:
        return is_number(value) and self.low <= value <= self.high


@dataclass(frozen=True)
class Uniform:
    """A number from low to high, both included. The unit is the parameter's.

    Raises:
        InputError: the bounds are not finite numbers with low <= high, `prior` lies outside of them, or `only_if` maps
            no names to tuples.
    """

    low: float
    high: float
    prior: float | None = _extra()
    only_if: Mapping[str, tuple[Any, ...]] | None = _extra()

    def __post_init__(self) -> None:
        _make_floats(self)
        _check_extras(self)

    def contains(self, value: Any) -> bool:
        return is_number(value) and self.low <= value <= self.high


@dataclass(frozen=True)
class IntUniform:
    """An integer from low to high, both included. The unit is the parameter's.

    Raises:
        InputError: the bounds are not integers with low <= high, `prior` is none between them, or `only_if` maps no
            names to tuples.
    """

    low: int
    high: int
    prior: int | None = _extra()
    only_if: Mapping[str, tuple[Any, ...]] | None = _extra()

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if type(self.low) is not int or type(self.high) is not int:
            raise InputError(f"IntUniform takes integers, but got low={self.low!r}, high={self.high!r}")
        _check_extras(self)

    def contains(self, value: Any) -> bool:
        # 2.0 is one as well: a Config keeps a whole number so where its field may have a fraction
        return is_number(value) and self.low <= value <= self.high and value == int(value)


@dataclass(frozen=True)
class Choice:
    """One of these values, without an order, as in Choice((True, False)).

    Raises:
        InputError: not a tuple, no value, a value given twice, `prior` is none of them, or `only_if` maps no names to
            tuples.
    """

    choices: tuple[Any, ...]
    prior: bool | int | float | str | None = _extra()
    only_if: Mapping[str, tuple[Any, ...]] | None = _extra()

    def __post_init__(self) -> None:
        if not isinstance(self.choices, list | tuple) or not self.choices:
            raise InputError(f"Choice takes a tuple of at least one value, but got {self.choices!r}")
        for index, choice in enumerate(self.choices):
            if choice in self.choices[:index]:
                raise InputError(f"the values of a Choice must differ, but got {choice!r} twice")
        object.__setattr__(self, "choices", tuple(self.choices))  # JSON has lists
        _check_extras(self)

    def contains(self, value: Any) -> bool:
        return value in self.choices


Domain = LogUniform | Uniform | IntUniform | Choice
KINDS = {kind.__name__: kind for kind in (LogUniform, Uniform, IntUniform, Choice)}


def ends(domain: Domain) -> tuple[Any, ...]:
    """The values that show whether all of the domain is allowed: its bounds, or every choice."""
    return domain.choices if isinstance(domain, Choice) else (domain.low, domain.high)


def to_dict(domain: Domain) -> dict[str, Any]:
    """As JSON, for `from_dict`; extras that are not given are left out."""
    values = {name: value for name, value in asdict(domain).items() if value is not None}
    return {"kind": type(domain).__name__, **values}


def from_dict(content: Mapping[str, Any]) -> Domain:
    """The domain that `to_dict` wrote.

    Raises:
        InputError: values that a domain doesn't allow.
        KeyError, TypeError: not what `to_dict` writes.
    """
    arguments = dict(content)
    return KINDS[arguments.pop("kind")](**arguments)


def is_number(value: Any) -> bool:
    """Whether it is an int or a float; True and False are not."""
    return type(value) in (int, float)


def _make_floats(domain: LogUniform | Uniform) -> None:
    """Check the bounds and make them floats, so that a Config refuses them for a field that takes integers."""
    _check_bounds(domain.low, domain.high)
    object.__setattr__(domain, "low", float(domain.low))
    object.__setattr__(domain, "high", float(domain.high))


def _check_bounds(low: Any, high: Any) -> None:
    if not (is_number(low) and is_number(high) and math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(f"`low <= high` must hold for finite numbers, but got low={low!r}, high={high!r}")


def _check_extras(domain: Domain) -> None:
    """Check `prior` and `only_if`, and keep a copy of the latter with tuples, where JSON has lists."""
    if domain.prior is not None and not domain.contains(domain.prior):
        raise InputError(f"prior = {domain.prior!r} lies outside of {domain}: it must be one of its values")
    if domain.only_if is None:
        return
    valid = isinstance(domain.only_if, Mapping) and domain.only_if
    if not valid or not all(
        isinstance(name, str) and isinstance(values, list | tuple) and values for name, values in domain.only_if.items()
    ):
        raise InputError(
            f'only_if takes a tuple of values for each domain named, as in {{"solver": ("sgd",)}}, '
            f"but got {domain.only_if!r}"
        )
    object.__setattr__(domain, "only_if", {name: tuple(values) for name, values in domain.only_if.items()})

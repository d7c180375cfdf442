"""Search spaces: which fields of a `Config` a search varies, and over what range."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from model.config import Config, InputError, idle_knobs, nearest, settled


@dataclass(frozen=True)
class LogUniform:
    """A number from low to high, both included, whose logarithm is uniform: for factors. The unit is the field's.

    Raises:
        InputError: the bounds are not finite numbers with 0 < low <= high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _make_floats(self)
        if self.low <= 0:
            raise InputError(f"`low > 0` must hold for LogUniform, but got low={self.low:g}, high={self.high:g}")

    def contains(self, value: Any) -> bool:
        return _is_number(value) and self.low <= value <= self.high


@dataclass(frozen=True)
class Uniform:
    """A number from low to high, both included. The unit is the field's.

    Raises:
        InputError: the bounds are not finite numbers with low <= high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _make_floats(self)

    def contains(self, value: Any) -> bool:
        return _is_number(value) and self.low <= value <= self.high


@dataclass(frozen=True)
class IntUniform:
    """An integer from low to high, both included. The unit is the field's.

    Raises:
        InputError: the bounds are not integers with low <= high.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if type(self.low) is not int or type(self.high) is not int:
            raise InputError(f"IntUniform takes integers, but got low={self.low!r}, high={self.high!r}")

    def contains(self, value: Any) -> bool:
        # 2.0 is one as well: a Config keeps a whole number so where its field may have a fraction
        return _is_number(value) and self.low <= value <= self.high and value == int(value)


@dataclass(frozen=True)
class Choice:
    """One of these values, without an order, as in Choice((True, False)).

    Raises:
        InputError: not a tuple, no value, or a value given twice.
    """

    choices: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.choices, list | tuple) or not self.choices:
            raise InputError(f"Choice takes a tuple of at least one value, but got {self.choices!r}")
        for index, choice in enumerate(self.choices):
            if choice in self.choices[:index]:
                raise InputError(f"the values of a Choice must differ, but got {choice!r} twice")
        object.__setattr__(self, "choices", tuple(self.choices))  # JSON has lists

    def contains(self, value: Any) -> bool:
        return value in self.choices


Domain = LogUniform | Uniform | IntUniform | Choice
_KINDS = {kind.__name__: kind for kind in (LogUniform, Uniform, IntUniform, Choice)}


@dataclass(frozen=True)
class SearchSpace:
    """A base config, the known-good start, and a domain for every field that is varied.

    Raises:
        InputError: no domain, an unknown field, a domain that a Config doesn't allow, `epochs` as a domain, or a base
            outside of a domain.
    """

    base: Config
    domains: Mapping[str, Domain]

    def __post_init__(self) -> None:
        known = [knob.name for knob in fields(Config)]
        object.__setattr__(self, "domains", dict(self.domains))  # our own, so that it stays as checked
        if not isinstance(self.base, Config):
            raise InputError(f"the base of a search space must be a Config, such as s0(), but got {self.base!r}")
        if not self.domains:
            raise InputError("a search space needs at least one domain")
        for name, domain in self.domains.items():
            if name not in known:
                raise InputError(
                    f"domain {name!r} is no field of Config{nearest(str(name), known)}: {', '.join(known)}"
                )
            if type(domain) not in _KINDS.values():
                raise InputError(f"domain {name} = {domain!r}: it must be one of {', '.join(_KINDS)}")
            if name == "epochs":
                raise InputError(
                    "epochs can't be a domain: it must be the same for all trials, or rungs would not mean the same; "
                    "set it on the base"
                )
            for value in domain.choices if isinstance(domain, Choice) else (domain.low, domain.high):
                try:
                    Config.from_dict(settled({**self.base.to_dict(), name: value}))
                except InputError as error:
                    raise InputError(f"domain {name} = {domain}: {error}") from error
            decides = idle_knobs(self.base.to_dict()).get(name)
            if decides and decides not in self.domains:
                raise InputError(
                    f"domain {name} has no effect with {decides} = {getattr(self.base, decides)} in the base: "
                    f"change the base, or make {decides} a domain too"
                )
            value = getattr(self.base, name)
            if not domain.contains(value):
                raise InputError(
                    f"the base has {name} = {value!r}, outside of its domain {domain}: the base is tried first"
                )

    def config(self, params: Mapping[str, Any]) -> Config:
        """The base with `params` in place of its values; a knob that then has no effect keeps its default, as momentum
        does in a trial with another solver than sgd.

        Raises:
            InputError: an unknown field, or values that a Config doesn't allow.
        """
        return Config.from_dict(settled({**self.base.to_dict(), **params}))

    def params_of(self, config: Config) -> dict[str, Any]:
        """The values that `config` has in the fields that this space varies."""
        return {name: getattr(config, name) for name in self.domains}

    def with_base(self, base: Config) -> "SearchSpace":
        """The same domains around another base.

        Raises:
            InputError: `base` lies outside of a domain.
        """
        return SearchSpace(base, self.domains)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for `from_dict`."""
        domains = {name: {"kind": type(domain).__name__, **asdict(domain)} for name, domain in self.domains.items()}
        return {"base": self.base.to_dict(), "domains": domains}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SearchSpace":
        """The space that `to_dict` wrote.

        Raises:
            InputError: values that a space doesn't allow.
            KeyError, TypeError: not what `to_dict` writes.
        """
        domains = {}
        for name, values in content["domains"].items():
            arguments = dict(values)
            domains[name] = _KINDS[arguments.pop("kind")](**arguments)
        return cls(Config.from_dict(content["base"]), domains)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _make_floats(domain: LogUniform | Uniform) -> None:
    """Check the bounds and make them floats, so that a Config refuses them for a field that takes integers."""
    _check_bounds(domain.low, domain.high)
    object.__setattr__(domain, "low", float(domain.low))
    object.__setattr__(domain, "high", float(domain.high))


def _check_bounds(low: Any, high: Any) -> None:
    if not (_is_number(low) and _is_number(high) and math.isfinite(low) and math.isfinite(high) and low <= high):
        raise InputError(f"`low <= high` must hold for finite numbers, but got low={low!r}, high={high!r}")

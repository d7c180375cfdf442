"""Search spaces: which fields of a `Config` a search varies, and over what range."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from model.config import Config, InputError, idle_knobs, nearest, settled
from search_spaces import domains as domain_kinds
from search_spaces.coordinates import COORDINATES, Coordinate
from search_spaces.domains import KINDS, Choice, Domain, IntUniform, LogUniform, Uniform, ends, is_number

__all__ = ["LIMITS", "Choice", "Domain", "IntUniform", "LogUniform", "SearchSpace", "Uniform"]

LIMITS = {
    "params": "parameters of the net",
    "train_flops": "floating-point operations of a whole training",
    "memory_bytes": "bytes of memory of a training",
}
"""what a space may limit, with its unit"""
_FIELDS = [knob.name for knob in fields(Config)]


@dataclass(frozen=True)
class SearchSpace:
    """A base config, the known-good start, and a domain for every field or coordinate that is varied.

    A bare value (int, float, bool, str) among the domains is a constant: it becomes part of every base and is no
    domain. Constants, `coordinates` and `more_bases` are checked and kept in their final form.

    Args:
        more_bases: further known-good starts. Each must be a point of the space: inside of its domains, and like the
            base in every field that the space doesn't vary.
        coordinates: those of `search_spaces.coordinates` that are keys of `domains`.
        limits: the most that a trial may cost, by the names in `LIMITS`; proposals above are not tried.

    Raises:
        InputError: no domain, an unknown name, a domain, constant or condition that makes no sense, a base outside of
            the space, or a limit that is no positive number.
    """

    base: Config
    domains: Mapping[str, Domain]
    more_bases: tuple[Config, ...] = ()
    coordinates: tuple[Coordinate, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for base in (self.base, *self.more_bases):
            if not isinstance(base, Config):
                raise InputError(f"the base of a search space must be a Config, such as s0(), but got {base!r}")
        for coordinate in self.coordinates:
            if coordinate not in COORDINATES.values():
                raise InputError(
                    f"coordinate {getattr(coordinate, 'name', coordinate)!r} is unknown: search_spaces/coordinates.py "
                    f"has {', '.join(name.upper() for name in COORDINATES)}"
                )
        # in the order in which they are applied
        object.__setattr__(self, "coordinates", tuple(c for c in COORDINATES.values() if c in self.coordinates))
        for name in self.domains:
            self._check_name(name)
        self._fold_constants()
        if not self.domains:
            raise InputError("a search space needs at least one domain")
        self._check_coordinates()
        self._check_conditions()
        for name, domain in self.domains.items():
            self._check_domain(name, domain)
        self._check_base(self.base, "the base")
        self._keep_more_bases()
        self._check_limits()

    @property
    def bases(self) -> tuple[Config, ...]:
        """The base, then the further ones; no config twice."""
        return (self.base, *self.more_bases)

    def active(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the domains that exist in a trial with these params, in the order of `domains`. A param that is
        not given counts as the base's."""
        return tuple(name for name in self.domains if self._is_active(name, params))

    def config(self, params: Mapping[str, Any]) -> Config:
        """The base with the active ones of `params` in place of its values. What is not given keeps the base's value: a
        coordinate that of the coordinate, so that its field follows the others. A knob that then has no effect keeps
        its default, as momentum does in a trial with another solver than sgd.

        Raises:
            InputError: an unknown field, or values that a Config doesn't allow.
        """
        active, derived = self.active(params), {coordinate.name for coordinate in self.coordinates}
        given = {
            name: value
            for name, value in params.items()
            if name not in derived and (name in active or name not in self.domains)
        }
        config = Config.from_dict(settled({**self.base.to_dict(), **given}))
        for coordinate in self.coordinates:
            if coordinate.name in active:
                value = params.get(coordinate.name, coordinate.from_field(self.base))
                field_values: Any = {coordinate.field: coordinate.to_field(value, config)}
                config = replace(config, **field_values)
        return config

    def params_of(self, config: Config) -> dict[str, Any]:
        """The values that `config` has in the domains that are active in it: the inverse of `config`."""
        values = {name: self._value(config, name) for name in self.domains}
        return {name: values[name] for name in self.active(values)}

    def with_base(self, base: Config) -> "SearchSpace":
        """The same space around another base. Further bases keep the fields in which they differ from the one until
        now and take everything else from `base`: a narrower base makes all narrower, though width is searched, but for
        those that have a width of their own. Constants are not kept: `base` brings its own values.

        Raises:
            InputError: `base` lies outside of a domain, or a further base makes no sense with it.
        """
        old = self.base.to_dict()
        own = [
            {name: value for name, value in other.to_dict().items() if value != old[name]} for other in self.more_bases
        ]
        return replace(self, base=base, more_bases=tuple(replace(base, **fields) for fields in own))

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for `from_dict`; what is not used is left out."""
        content: dict[str, Any] = {
            "base": self.base.to_dict(),
            "domains": {name: domain_kinds.to_dict(domain) for name, domain in self.domains.items()},
            "more_bases": [base.to_dict() for base in self.more_bases],
            "coordinates": [coordinate.name for coordinate in self.coordinates],
            "limits": dict(self.limits),
        }
        return {key: value for key, value in content.items() if value}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SearchSpace":
        """The space that `to_dict` wrote.

        Raises:
            InputError: values that a space doesn't allow.
            KeyError, TypeError: not what `to_dict` writes.
        """
        return cls(
            Config.from_dict(content["base"]),
            {name: domain_kinds.from_dict(values) for name, values in content["domains"].items()},
            more_bases=tuple(Config.from_dict(base) for base in content.get("more_bases", ())),
            coordinates=tuple(COORDINATES[name] for name in content.get("coordinates", ())),
            limits=content.get("limits", {}),
        )

    def _coordinate(self, name: str) -> Coordinate | None:
        return next((coordinate for coordinate in self.coordinates if coordinate.name == name), None)

    def _value(self, config: Config, name: str) -> Any:
        coordinate = self._coordinate(name)
        return coordinate.from_field(config) if coordinate else getattr(config, name)

    def _is_active(self, name: str, params: Mapping[str, Any]) -> bool:
        for other, values in (self.domains[name].only_if or {}).items():
            value = params[other] if other in params else self._value(self.base, other)
            if value not in values or not self._is_active(other, params):
                return False
        return True

    def _conditions(self, name: str) -> dict[str, Any]:
        """Values with which the domain is active: the first one of each condition, and of the conditions of those."""
        values: dict[str, Any] = {}
        for other, allowed in (self.domains[name].only_if or {}).items():
            values |= {**self._conditions(other), other: allowed[0]}
        return values

    def _check_name(self, name: str) -> None:
        if name in _FIELDS or self._coordinate(name):
            return
        if name in COORDINATES:
            raise InputError(f"domain {name!r} is a coordinate: add coordinates=({name.upper()},) to the space")
        raise InputError(f"domain {name!r} is no field of Config{nearest(str(name), _FIELDS)}: {', '.join(_FIELDS)}")

    def _fold_constants(self) -> None:
        """Move bare values from the domains into every base, and keep our own dict, so that it stays as checked."""
        constants = {name: value for name, value in self.domains.items() if isinstance(value, bool | int | float | str)}
        for name, value in constants.items():
            if self._coordinate(name):
                raise InputError(
                    f"{name} = {value!r} can't be a constant, since its field follows other values: "
                    f"hold it with Choice(({value!r},))"
                )
        bases = [Config.from_dict({**base.to_dict(), **constants}) for base in (self.base, *self.more_bases)]
        object.__setattr__(self, "base", bases[0])
        object.__setattr__(self, "more_bases", tuple(bases[1:]))
        object.__setattr__(self, "domains", {name: d for name, d in self.domains.items() if name not in constants})
        for name, domain in self.domains.items():
            if type(domain) not in KINDS.values():
                raise InputError(f"domain {name} = {domain!r}: it must be one of {', '.join(KINDS)}, or a constant")

    def _check_coordinates(self) -> None:
        for coordinate in self.coordinates:
            if coordinate.name not in self.domains:
                raise InputError(f"coordinate {coordinate.name} has no domain: add one, or leave the coordinate out")
            if coordinate.field in self.domains:
                raise InputError(
                    f"{coordinate.name} and {coordinate.field} can't both be domains: {coordinate.field} follows from "
                    f"{coordinate.name}; drop one of them"
                )
            domain = self.domains[coordinate.name]
            if not all(is_number(value) for value in ends(domain)):
                raise InputError(f"domain {coordinate.name} = {domain}: a coordinate takes numbers")

    def _check_conditions(self) -> None:
        for name, domain in self.domains.items():
            for other, values in (domain.only_if or {}).items():
                decides = self.domains.get(other)
                if decides is None:
                    raise InputError(
                        f"domain {name} has only_if {other!r}, which is no domain of the space"
                        f"{nearest(other, self.domains)}: make it one, or drop the condition"
                    )
                if not isinstance(decides, Choice | IntUniform):
                    raise InputError(f"domain {name} has only_if {other!r}, which must be a Choice or an IntUniform")
                for value in values:
                    if not decides.contains(value):
                        raise InputError(
                            f"domain {name} has only_if {other} = {value!r}, which lies outside of its domain {decides}"
                        )
            self._check_no_cycle(name, (name,))

    def _check_no_cycle(self, name: str, path: tuple[str, ...]) -> None:
        for other in self.domains[name].only_if or {}:
            if other == path[0]:
                raise InputError(f"the conditions of {' -> '.join((*path, other))} go round in a circle: drop one")
            if other in self.domains and other not in path:
                self._check_no_cycle(other, (*path, other))

    def _check_domain(self, name: str, domain: Domain) -> None:
        """Every end of the domain makes a Config, and has an effect in it or may get one."""
        conditions = self._conditions(name)
        for value in ends(domain):
            try:
                config = self.config({**conditions, name: value})
            except InputError as error:
                raise InputError(f"domain {name} = {domain}: {error}") from error
            if self._coordinate(name) and not math.isclose(self._value(config, name), value, rel_tol=1e-9):
                others = ", ".join(c.name for c in self.coordinates if c.name != name)
                raise InputError(f"{name} doesn't hold beside {others}, which changes it again: drop one of them")
        decides = idle_knobs(self.base.to_dict()).get(name)
        if decides and decides not in self.domains:
            raise InputError(
                f"domain {name} has no effect with {decides} = {getattr(self.base, decides)} in the base: "
                f"change the base, or make {decides} a domain too"
            )

    def _check_base(self, base: Config, called: str) -> None:
        for name, value in self.params_of(base).items():
            if not self.domains[name].contains(value):
                raise InputError(
                    f"{called} has {name} = {value!r}, outside of its domain {self.domains[name]}: "
                    f"bases are tried first"
                )

    def _keep_more_bases(self) -> None:
        """Check the further bases, and drop those that are there already."""
        kept: list[Config] = []
        for base in self.more_bases:
            self._check_base(base, "a further base")
            reached, active = self.config(self.params_of(base)), self.active(self.params_of(base))
            follow = {coordinate.field for coordinate in self.coordinates if coordinate.name in active}
            for name in _FIELDS:
                value, has = getattr(base, name), getattr(reached, name)
                if name not in follow and value != has:
                    raise InputError(
                        f"a further base has {name} = {value!r}, the base {has!r}, and {name} doesn't vary there: "
                        f"make it a domain, or give all bases the same value"
                    )
            if base not in (self.base, *kept):
                kept.append(base)
        object.__setattr__(self, "more_bases", tuple(kept))

    def _check_limits(self) -> None:
        for name, value in self.limits.items():
            if name not in LIMITS:
                raise InputError(f"unknown limit {name!r}{nearest(str(name), LIMITS)}: there are {', '.join(LIMITS)}")
            if not (is_number(value) and math.isfinite(value) and value > 0):
                raise InputError(
                    f"limit {name} = {value!r} is not allowed: it must be a positive number ({LIMITS[name]})"
                )
        object.__setattr__(self, "limits", {name: float(value) for name, value in self.limits.items()})

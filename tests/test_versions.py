"""pyproject.toml declares each package that the code imports, from a lowest release on."""

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

from conftest import REPO
from test_layers import FILES, imports, top

from tune.run import PACKAGES

PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = {"model", "search_spaces", "tune", "benchmarks"} | {file.stem for file in (REPO / "tests").glob("*.py")}
REQUIREMENT = re.compile(r"([a-z0-9-]+)(\[[a-z0-9,-]+\])?>=\d+(\.\d+)*(,<\d+(\.\d+)*)?")


def declared(requirements: list[str]) -> set[str]:
    """The packages that requirements name; each has a lower bound."""
    matches = {text: REQUIREMENT.fullmatch(text) for text in requirements if not text.startswith(PROJECT["name"])}
    assert all(matches.values()), f"no NAME>=VERSION: {[text for text, match in matches.items() if not match]}"
    return {match[1] for match in matches.values() if match}


RUN = declared(PROJECT["dependencies"])


def foreign(files: Iterable[Path]) -> set[str]:
    """The packages that files import, but for Python's own and this repository's."""
    packages = packages_distributions()
    names = {top(module) for file in files for module in imports(file)} - sys.stdlib_module_names - OWN
    return {packages.get(name, [name])[0].lower() for name in names}


def test_each_requirement_has_a_lower_bound() -> None:
    declared(PYPROJECT["build-system"]["requires"])
    for extra in EXTRAS.values():
        declared(extra)


def test_what_the_commands_import_is_declared() -> None:
    assert foreign(FILES) <= RUN | declared(EXTRAS["figures"])


def test_what_the_tests_import_is_declared() -> None:
    assert foreign((REPO / "tests").glob("*.py")) <= RUN | declared(EXTRAS["dev"])


def test_a_run_records_versions_of_declared_packages() -> None:
    assert {*PACKAGES} <= RUN

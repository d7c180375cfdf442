"""The examples of docs/ are spaces that load."""

import re
from pathlib import Path

import pytest
from conftest import REPO

import search_spaces
from search_spaces.space import SearchSpace

EXAMPLES = re.findall(r"\n## (\w+)[^#]*?```python\n(.*?)```", (REPO / "docs" / "spaces.md").read_text(), re.DOTALL)


def test_there_is_one_for_each_feature() -> None:
    assert len(EXAMPLES) == (REPO / "docs" / "spaces.md").read_text().count("\n## ")


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example(tmp_path: Path, title: str, code: str) -> None:
    file = tmp_path / f"{title}.py"
    file.write_text(code)
    space = search_spaces.load(str(file))
    for base in space.bases:
        assert space.config(space.params_of(base)) == base
    assert SearchSpace.from_dict(space.to_dict()) == space

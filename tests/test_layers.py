"""Imports run one way: tune -> search_spaces -> model.config, and tune -> model."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

FILES = [file for layer in ("model", "search_spaces", "tune") for file in sorted((REPO / layer).rglob("*.py"))]


def imports(file: Path) -> set[str]:
    """The full names of the modules that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}, line {node.lineno}: imports are absolute"
            # `from model import data` imports model.data
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name for name in names if (REPO / name.replace(".", "/")).with_suffix(".py").exists()}
            found |= {node.module} if node.module != "model" else set()
    return found


def top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPO)))
def test_imports_run_one_way(file: Path) -> None:
    layer, modules = file.relative_to(REPO).parts[0], imports(file)
    if layer != "tune":
        assert not {top(module) for module in modules} & {"tune", "ray", "optuna"}
    if layer == "model":
        assert "search_spaces" not in {top(module) for module in modules}
    if layer == "search_spaces":
        rest = {
            module
            for module in modules
            if module not in ("model.config", "model.recipes") and top(module) != "search_spaces"
        }
        assert {top(module) for module in rest} <= sys.stdlib_module_names
    if file in [REPO / "model" / f"{name}.py" for name in ("config", "files", "recipes")]:
        assert {top(module) for module in modules - {"model.config", "model.files"}} <= sys.stdlib_module_names


def test_a_space_is_read_without_torch() -> None:
    code = (
        "import sys, search_spaces; search_spaces.load('lr_regimes'); print({'torch', 'numpy', 'ray'} & {*sys.modules})"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPO)))
def test_text_files_have_an_encoding_of_their_own(file: Path) -> None:
    """Not that of the locale. Ruff finds a call only where it sees that something is a path."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).rpartition(".")
        is_bytes = any(isinstance(each, ast.Constant) and "b" in str(each.value) for each in node.args)
        opens = called[2] == "open" and called[0] not in ("os", "Image") and not is_bytes
        if opens or called[2] in ("read_text", "write_text"):
            assert "encoding" in [each.arg for each in node.keywords], f"line {node.lineno}"

"""The shape of the house: imports go one way, files and functions stay small, names are few."""

import ast
import dataclasses
import subprocess
import sys
from inspect import ismodule
from pathlib import Path

import pytest

import saccade
from saccade.models import ConvConfig, ResNetConfig, TransformerConfig

ROOT = Path(saccade.__file__).parent
FLOORS = [
    {"_registry", "_sources", "_keymap", "_golden"},
    {"kernels"},
    {"ops", "data"},
    {"nn"},
    {"attention"},
    {"models"},
    {"analysis", "verify", "convert", "transform"},
    {"train"},
    {"report"},
    {"bench"},
    {"catalogue", "_flags", "_own"},
    {"cli"},
    {"__main__"},
]
"""As docs/architecture.md has them; a floor imports only floors below it, and itself."""
BESIDE = {"data": {"_registry", "_sources", "_keymap", "_golden"}, "report": set()}
"""Folders that know less than their floor would let them."""
LONG = {"kernels": 200}
"""Lines of a function where it is a kernel: those cannot call much."""
MAX_FILE, MAX_FUNCTION, MAX_FIELDS, MAX_NAMES = 400, 60, 15, 12
FILES = sorted(ROOT.rglob("*.py"))
by_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if name in names)


def imported(tree: ast.AST) -> set[str]:
    """Top-level rooms of saccade that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "saccade":
                names |= {f"saccade.{a.name}" for a in node.names}
    rooms = {name.split(".")[1] for name in names if name.startswith("saccade.")}
    return rooms - {"__version__"}


@by_file
def test_imports_go_down(path: Path):
    here = room(path.relative_to(ROOT).parts)
    if here == "__init__":  # the front door opens on everything
        return
    for there in imported(ast.parse(path.read_text())) - {here}:
        assert floor(there) < floor(here) or there in FLOORS[0], f"{here} imports {there}"
        if here in BESIDE:
            assert there in BESIDE[here], f"{here} imports {there}"


@by_file
def test_files_and_functions_stay_small(path: Path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE
    most = LONG.get(room(path.relative_to(ROOT).parts), MAX_FUNCTION)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < most, node.name


@by_file
def test_nothing_prints_and_nothing_is_pickled(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print" or path.name == "cli.py", f"{path.name} prints"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert called not in ("torch.save", "pickle.dump", "pickle.dumps"), called


@pytest.mark.parametrize("body", ["transformer", "cnn", "resnet"])
def test_bodies_never_ask_for_a_part_by_name(body: str):
    source = (ROOT / "models" / f"{body}.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            strings = [c for c in ast.walk(node) if isinstance(c, ast.Constant)]
            assert not any(isinstance(c.value, str) for c in strings), ast.unparse(node)


@pytest.mark.parametrize("config", [TransformerConfig, ConvConfig, ResNetConfig])
def test_a_body_has_few_fields(config: type):
    assert len(dataclasses.fields(config)) <= MAX_FIELDS


def test_importing_the_library_does_not_import_the_compiler():
    """It takes as long as torch itself, and most users never compile."""
    code = "import sys, saccade; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_these():
    public = {n for n, v in vars(saccade).items() if not n.startswith("_") and not ismodule(v)}
    offered = {
        "check_attention",
        "create_attention",
        "create_model",
        "explain",
        "list_attention",
        "list_models",
        "load",
        "streaming",
    }
    assert public - {"Path", "SpikingModel", "Streaming", "version"} == offered
    assert len(offered) <= MAX_NAMES

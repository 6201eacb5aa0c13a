"""The import rules: which module may use which library, no circles between modules, and commands that start light."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cachestore", "trainer", "cli")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

DOORS = {
    "lmdb": (
        "cachestore/environment.py",
        "cachestore/index_checker.py",
    ),  # the latter is LMDB's own checker, which opens nothing
    "pyarrow": (
        "cachestore/shard.py",
        "cachestore/manifest.py",
        # the readers: a data set, its file formats, tables in memory
        "cachestore/dataset.py",
        "cachestore/delimited.py",
        "cachestore/formats.py",
        "cachestore/tables.py",
        "cachestore/picture_cells.py",
        "cachestore/picture_folders.py",
        # what leaves the store, and what comes from elsewhere
        "cachestore/export.py",
        "cachestore/carried.py",
        "cachestore/imports.py",
        "cachestore/salvage.py",
        "trainer/features/",
        "cli/predict.py",  # writes predictions as Parquet
    ),
    "torch": (
        "cachestore/encoders/text.py",
        "cachestore/encoders/text_model.py",
        "cachestore/encoders/pooling.py",
        "cachestore/encoders/image.py",
        "cachestore/encoders/image_model.py",
        "cachestore/encoders/image_settings.py",  # its downloads of weights
        "cachestore/encoders/hardware.py",
        "cachestore/encoders/torchvision_models.py",
        "cachestore/encoders/_torchvision.py",
        "trainer/",
    ),
    "transformers": ("cachestore/encoders/transformers_model.py",),
    "torchvision": ("cachestore/encoders/torchvision_models.py",),
    "peft": ("trainer/adapters/",),
    "ray": ("trainer/strategies/ray.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    # test and demo dependencies, which an installed package may lack
    "pandas": ("trainer/record.py",),  # in the method that makes a frame
    "sklearn": ("trainer/estimators.py",),  # which are for those who have it
    "sentence_transformers": (),
}
DURABLE = {"fsync", "fdatasync", "replace", "rename", "renames", "link", "symlink"}
WRITING_METHODS = {"write_bytes", "write_text", "touch", "rename", "hardlink_to", "symlink_to"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def imported(path: Path) -> Iterator[str]:
    """Every module that ``path`` imports anywhere, with a submodule named in full where one is imported by name."""
    here = module_name(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in NAMES else source


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_each_library_has_its_door(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    strays = {
        library
        for library in {name.split(".")[0] for name in imported(path)} & DOORS.keys()
        if not any(place == door or (door.endswith("/") and place.startswith(door)) for door in DOORS[library])
    }
    assert not strays, f"{place} imports {', '.join(sorted(strays))}"


@pytest.mark.parametrize("door", sorted({door for doors in DOORS.values() for door in doors}))
def test_every_door_exists(door: str) -> None:
    assert (ROOT / door).exists()


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {module_name(path): {name for name in imported(path) if name in NAMES} for path in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError naming the circle


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_use_absolute_names_and_lazy_annotations(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    code = [node for node in tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    if code:
        assert isinstance(code[0], ast.ImportFrom)
        assert code[0].module == "__future__"


def durable_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in DURABLE:
                yield f"os.{name}"
            case ast.ImportFrom(module="os", names=names):
                yield from (f"os.{alias.name}" for alias in names if alias.name in DURABLE)
            case ast.Attribute(value=ast.Name(id="shutil"), attr="move"):
                yield "shutil.move"


def writing_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name)) if name in WRITING_METHODS:
                yield name
            case ast.Call(func=ast.Name(id="open") | ast.Attribute(attr="open"), args=args, keywords=keywords):
                given = [*args, *(keyword.value for keyword in keywords if keyword.arg == "mode")]
                modes = [value.value for value in given if isinstance(value, ast.Constant)]
                yield from (f"open {mode}" for mode in modes if isinstance(mode, str) and set(mode) & set("wax+"))


# A store has one door. Exports, runs and predictions are the user's files, outside any store and under no store's rules (no
# content names, no trash, errors of usage instead of the store's), so they have a door of their own.
DURABLE_DOORS = {"cachestore.files", "cachestore.outside"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_files_makes_writes_durable(path: Path) -> None:
    if module_name(path) not in DURABLE_DOORS:
        assert not list(durable_calls(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", [p for p in MODULES if module_name(p).startswith("cachestore")], ids=module_name)
def test_only_files_writes_into_a_store(path: Path) -> None:
    if module_name(path) not in {"cachestore.files", "cachestore.locks", "cachestore.outside"}:
        assert not list(writing_calls(ast.parse(path.read_text(encoding="utf-8"))))


def test_the_door_tests_can_fail(tmp_path: Path) -> None:
    tree = ast.parse("import os\nos.replace(a, b)\nPath(p).write_bytes(b'')\nopen(p, 'wb')\nopen(p, 'rb')\nos.path")
    assert list(durable_calls(tree)) == ["os.replace"]
    assert sorted(writing_calls(tree)) == ["open wb", "write_bytes"]


HEAVY = {"torch", "transformers", "torchvision", "tokenizers", "peft", "ray", "sklearn", "pandas", "scipy"}
REPORT = """
import json, sys
from cli.app import run
code = run(sys.argv[1:])
print("\\n" + json.dumps([code, list(sys.modules)]))
"""


def loaded(*arguments: str) -> set[str]:
    """The top-level modules that a finished command has in memory."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *arguments], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return {name.split(".")[0] for name in modules}


def test_help_starts_without_heavy_libraries() -> None:
    assert not loaded("--help") & HEAVY


def test_ls_and_a_build_without_a_model_start_without_heavy_libraries(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("message\nfirst\nsecond\n", encoding="utf-8")
    store = str(tmp_path / "store")
    assert not loaded("build", str(data), "--column", "message", "--encoder", "hashing", "--store", store) & HEAVY
    assert not loaded("ls", "--store", store) & HEAVY

"""Errors cross processes, and the exit codes drawn on top of the module are those of the classes."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from cachestore import errors
from cachestore.errors import CachestoreError

CLASSES = [item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, CachestoreError)]
TREE_LINE = re.compile(r"^    (?P<branch>[│├└─ ]*)(?P<name>[A-Z]\w+) +(?P<code>\d+)   \S", re.MULTILINE)


def drawn() -> dict[str, tuple[int, str | None]]:
    """Class name → (exit code, parent) as drawn in the module's docstring."""
    found: dict[str, tuple[int, str | None]] = {}
    path: list[str] = []
    for line in TREE_LINE.finditer(errors.__doc__ or ""):
        depth = len(line["branch"]) // 4
        del path[depth:]
        found[line["name"]] = (int(line["code"]), path[-1] if path else None)
        path.append(line["name"])
    return found


def test_the_drawing_is_the_tree() -> None:
    real = {
        cls.__name__: (cls.exit_code, None if cls is CachestoreError else cls.__base__.__name__)  # type: ignore[union-attr]
        for cls in CLASSES
    }
    assert drawn() == real


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_survives_pickling(cls: type[CachestoreError]) -> None:
    error = cls("reviews.csv: no column 'txet'; did you mean 'text'?")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert again.exit_code == error.exit_code


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_says_in_its_docstring_when_it_is_raised(cls: type[CachestoreError]) -> None:
    assert cls.__doc__
    assert cls.__doc__ != cls.__base__.__doc__  # type: ignore[union-attr]


def test_exit_codes_are_those_of_the_readme() -> None:
    assert {cls.exit_code for cls in CLASSES} == {1, 2, 3, 4}


def test_nearest_names_a_close_choice_and_is_silent_otherwise() -> None:
    assert errors.nearest("txet", ["text", "title"]) == "; did you mean 'text'?"
    assert errors.nearest("wholly different", ["text", "title"]) == ""

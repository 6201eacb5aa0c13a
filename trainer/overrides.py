"""``a.b.c=value`` from a command line, put into a config's plain data before it is checked."""

from __future__ import annotations

from typing import Any

from cachestore import yaml_source
from cachestore.errors import ConfigError, nearest


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one value in ``data``; it is read as YAML. A feature is addressed by its name, or by its place from 0.

    Raises ConfigError when the override is no assignment or its path leads nowhere.
    """
    path, equals, text = override.partition("=")
    steps = path.strip().split(".")
    if not equals or not all(steps):
        raise ConfigError(f"{override!r} is no override; write it as path=value, for example trainer.epochs=3")
    value = yaml_source.parse(text, f"{path.strip()}=")
    here: Any = data
    done: list[str] = []
    while steps:
        step, steps = _step(here, steps)
        where = ".".join(done) or "the config"
        done.append(step)
        if isinstance(here, list):
            here = _item(here, step, where, override)
            if not steps:
                raise ConfigError(f"{override!r}: {'.'.join(done)} is a whole feature; name a setting of it")
        elif not isinstance(here, dict):
            raise ConfigError(f"{override!r}: {where} is {yaml_source.shown(here)} and has no {step!r}")
        elif not steps:
            here[step] = value
        else:
            if here.get(step) is None:
                here[step] = {}
            elif isinstance(here[step], str):
                here[step] = {"type": here[step]}  # encoder: minilm
            here = here[step]


def _step(here: Any, steps: list[str]) -> tuple[str, list[str]]:
    """The next key and what remains; a feature's name may hold dots."""
    if isinstance(here, list):
        for count in range(len(steps), 0, -1):
            name = ".".join(steps[:count])
            if any(isinstance(item, dict) and item.get("name") == name for item in here):
                return name, steps[count:]
    return steps[0], steps[1:]


def _item(items: list[Any], step: str, where: str, override: str) -> Any:
    for item in items:
        if isinstance(item, dict) and item.get("name") == step:
            return item
    if step.isascii() and step.isdigit() and int(step) < len(items):
        return items[int(step)]
    names = [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]
    raise ConfigError(
        f"{override!r}: {where} has no {step!r}{nearest(step, names) or '; it has ' + (', '.join(names) or 'nothing')}"
    )

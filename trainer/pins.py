"""What a run keeps in the store: a pin on the manifests that it is trained on, from before it trains until it is replaced or deleted.

A pin knows its run by the directory. A run that was moved is pinned at its new place when it is put to use there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cachestore import manifest as stored
from cachestore import references
from cachestore.errors import DamageError, StoreError
from cachestore.layout import is_id
from cachestore.store import Store
from trainer.checkpoint import run_id
from trainer.events import Clock
from trainer.run_directory import NewRun
from trainer.stored_inputs import Built


def data_versions(store: Store, built: Mapping[str, Built]) -> dict[str, list[str]]:
    """By split, how to name each manifest of its data: ``reviews@3``, or its id where no name leads to it."""
    return {
        split: [references.reference_to(store.root, found.build.manifest.id, found.build.name)] if found.build else []
        for split, found in built.items()
    }


@contextlib.contextmanager
def pinned(store: Store, run: NewRun, manifests: Mapping[str, Sequence[str]], clock: Clock) -> Iterator[None]:
    """Pin a run's manifests for the body and after it; a body that fails takes the pin away again.

    So nothing that a run is training on is collected meanwhile. One that is killed keeps its pin until its directory is deleted.
    """
    needed = tuple(dict.fromkeys(identity for listed in manifests.values() for identity in listed))
    if not needed:
        yield
        return
    if store.readonly:
        clock.say(
            f"The store at {store.root} is read-only: this run is not pinned there, so that `cachestore gc` by one who may write "
            "can remove what it was trained on."
        )
        yield
        return
    pin = references.Pin(run.id, str(run.path.resolve()), needed, _now())
    references.write_pin(store.root, pin)
    try:
        yield
    except BaseException:
        with contextlib.suppress(StoreError):  # what stopped the run is what the user must know
            references.drop_pin(store.root, run.id)
        raise


def release_replaced(store: Store, run: NewRun, clock: Clock) -> None:
    """Drop the pin of the run whose place this one took. The new run is whole already, so a fault is only told."""
    if run.replaces is None or store.readonly:
        return
    try:
        references.drop_pin(store.root, run.replaces)
    except StoreError as error:
        clock.say(f"What the run that lay at {run.path} before was trained on stays pinned: {error}")


def release(store: Store, run: Path) -> None:
    """Drop the pin of a run whose directory is about to go."""
    identity = run_id(run)
    if identity is not None and not store.readonly:
        references.drop_pin(store.root, identity)


def moved(store: Store, run: Path, manifests: Mapping[str, Sequence[str]], clock: Clock) -> None:
    """Pin a run that is put to use at ``run`` there, when its pin leads to where it no longer is, or was dropped.

    Only what the store still holds is pinned. A fault is only told: what the run is used for needs no pin.
    """
    identity = run_id(run)
    if identity is None or store.readonly:
        return
    place = str(run.resolve())
    try:
        old = references.read_pin(store.root, identity)
        if old is not None and not old.missing():
            return
        trained_on = old.manifests if old is not None else [each for listed in manifests.values() for each in listed]
        now = dict.fromkeys(references.follow(store.root, each) for each in trained_on)
        there = tuple(each for each in now if is_id(each) and stored.manifest_path(store.root, each).exists())
        if there:
            references.write_pin(store.root, references.Pin(identity, place, there, old.created if old else _now()))
            clock.say(
                f"The store at {store.root} now keeps what the run at {place} was trained on: it had no pin there."
            )
    except (StoreError, DamageError) as error:
        clock.say(f"What the run at {run} was trained on is not pinned under this place: {error}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

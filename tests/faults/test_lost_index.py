"""B3 16: the index is only a cache. Whatever becomes of it, the shards fill it again: the same keys at the same rows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import damage, readers
from tests.faults.damage import ask
from tests.faults.record import Record
from tests.faults.warm import Warm

Recording = Callable[[str], Record]


def _another_store(index: Path) -> None:
    """As when somebody copies an index along with the wrong shards."""
    shutil.rmtree(index)
    shutil.copytree(index.parents[2] / "other" / "store" / "index", index)


def _older(index: Path) -> None:
    """As when an index comes from an older backup than the shards."""
    shutil.rmtree(index)
    shutil.copytree(index.parents[2] / "older" / "store" / "index", index)


HARM: dict[str, Callable[[Path], object]] = {
    "folder deleted": shutil.rmtree,
    "data.mdb deleted": lambda index: (index / "data.mdb").unlink(),
    "lock.mdb deleted": lambda index: (index / "lock.mdb").unlink(),
    "data.mdb random": lambda index: (index / "data.mdb").write_bytes(os.urandom(60_000)),
    "data.mdb zeros": lambda index: (index / "data.mdb").write_bytes(bytes(60_000)),
    "data.mdb empty": lambda index: (index / "data.mdb").write_bytes(b""),
    "data.mdb a text": lambda index: (index / "data.mdb").write_text("see you later\n" * 9000),
    "data.mdb cut": lambda index: os.truncate(index / "data.mdb", 20_000),
    "lock.mdb random": lambda index: (index / "lock.mdb").write_bytes(os.urandom(9000)),
    "both random": lambda index: [path.write_bytes(os.urandom(9000)) for path in index.iterdir()],
    "of another store": _another_store,
    "of an older backup": _older,
}


@pytest.mark.parametrize("harm", HARM)
def test_whatever_becomes_of_the_index_the_shards_fill_it_again(
    warm: Warm, folder: Path, record: Recording, harm: str
) -> None:
    place = damage.sound_store(warm, folder)
    expected = ask(warm, "placed", place).facts
    assert len(expected) == readers.VECTORS
    damage.copied(place, folder / "older")
    for path in sorted((folder / "older" / "store" / "shards").rglob("*.arrow"))[:2]:
        path.unlink()
    ask(warm, "placed", folder / "older", mode="w").facts  # noqa: B018
    other = folder / "other"
    other.mkdir()
    (other / "table.csv").write_text("text,title\n" + "".join(f"other {row},{row}\n" for row in range(60)))
    assert ask(warm, "again", other).code == 0

    HARM[harm](place / "store" / "index")
    with record("16 the index deleted, garbage, or of another store") as trial:
        only_read = ask(warm, "read", place)
        assert only_read.code in (0, 4), only_read
        if only_read.code == 0:
            assert only_read.value["wrong"] == 0, only_read
        rebuilt = ask(warm, "placed", place, mode="w").facts
        assert set(rebuilt) == set(expected)
        assert {name.split()[0] for name in rebuilt.values()} <= {name.split()[0] for name in expected.values()}
        facts = ask(warm, "read", place).facts
        trial.trial(lost=readers.VECTORS - facts["served"], wrong=facts["wrong"])
        assert (facts["served"], facts["wrong"], facts["names"]) == (readers.VECTORS, 0, 6), facts
        assert ask(warm, "verified", place).facts == {"damage": []}
        built = ask(warm, "again", place).facts
        assert (built["encoded"], built["wrong"]) == (0, 0), "what is in the shards is not encoded again"

"""B3 7, 8, 34: bits turned over, files cut short, bytes scrambled. What is damaged is refused and never served, what is not is served
as before, nothing ends the process, verify finds it, and repair and a build bring it back without encoding anything that was not hit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import damage, readers
from tests.faults.damage import ask
from tests.faults.record import Record
from tests.faults.warm import Warm

Recording = Callable[[str], Record]
READ_CODES = {0, 3, 4}
"""How a reader may end: a store that can be read, one that cannot be used, one that is damaged."""


def long(count: int, seconds: int) -> Any:
    """A number of trials that takes so long that only `make faults` runs it."""
    return pytest.param(count, marks=[pytest.mark.long, pytest.mark.timeout(seconds)])


class Sound:
    """A small sound store, and what is true of it."""

    def __init__(self, warm: Warm, folder: Path) -> None:
        self.warm = warm
        self.folder = damage.sound_store(warm, folder)
        self.id = ask(warm, "again", self.folder).facts["id"]
        self.facts = ask(warm, "read", self.folder).facts
        assert (self.facts["served"], self.facts["names"]) == (readers.VECTORS, 6)
        assert ask(warm, "verified", self.folder).facts == {"damage": []}

    def copy(self) -> Path:
        """A copy to harm, in the place of the one before."""
        return damage.copied(self.folder, self.folder.parent / "copy")


@pytest.fixture
def sound(warm: Warm, folder: Path) -> Sound:
    return Sound(warm, folder)


@pytest.mark.parametrize("flips", [6, long(500, 3600)])
@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_flipped_bit_is_found_and_harms_only_what_it_hits(
    warm: Warm, sound: Sound, record: Recording, kind: str, flips: int
) -> None:
    chance = random.Random(f"{kind} {flips}")
    with record(f"7 a bit flipped in a file of class {kind}") as trial:
        for _ in range(flips):
            place = sound.copy()
            victim = chance.choice(damage.files_of(place / "store", kind))
            bit = chance.randrange(len(victim.read_bytes().rstrip(b"\0")) * 8)  # the index ends with room to spare
            damage.flip(victim, bit)
            check(warm, sound, place, kind, trial, f"bit {bit} of {victim.relative_to(place)}")


@pytest.mark.parametrize("cuts", [5, long(100, 3600)])
@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_file_cut_short_is_found_and_harms_only_itself(
    warm: Warm, sound: Sound, record: Recording, kind: str, cuts: int
) -> None:
    chance = random.Random(f"{kind} {cuts}")
    with record(f"8 a file of class {kind} cut short") as trial:
        for number in range(cuts):
            place = sound.copy()
            victim = chance.choice(damage.files_of(place / "store", kind))
            used = len(victim.read_bytes().rstrip(b"\0"))
            size = (0, 1, used - 1)[number] if number < 3 else chance.randrange(used)
            damage.cut(victim, size)
            check(warm, sound, place, kind, trial, f"{victim.relative_to(place)} cut to {size} of {used} bytes")


@pytest.mark.parametrize("mutations", [8, long(1250, 3600)])
@pytest.mark.parametrize("kind", damage.KINDS)
def test_scrambled_files_end_no_process_and_give_no_wrong_vector(
    warm: Warm, sound: Sound, record: Recording, kind: str, mutations: int
) -> None:
    chance = random.Random(f"{kind} {mutations}")
    with record(f"34 a file of class {kind} scrambled") as trial:
        for number in range(mutations):
            place = sound.copy()
            victim = chance.choice(damage.files_of(place / "store", kind))
            what = f"{damage.mutate(victim, chance)} in {victim.relative_to(place)}"
            if number % 20 == 0:
                check(warm, sound, place, kind, trial, what)
                continue
            # whoever writes to an index of scrambled pages before it is checked can be ended by LMDB's own assertions
            ended = ask(warm, "glanced", place, build=kind != "index")
            assert ended.code == 0, (what, ended)
            wrong = 0
            for answer in ended.value.values():
                assert answer.get("code", 0) in READ_CODES, (what, answer)
                wrong += answer.get("wrong", 0)
            trial.trial(wrong=wrong)
            assert wrong == 0, (what, ended)


def check(warm: Warm, sound: Sound, place: Path, kind: str, trial: Record, what: str) -> None:
    """The invariants of a store of which a file of that class was damaged: before anything is done about it, and after."""
    ended = ask(warm, "examined", place)
    assert ended.code == 0, (what, ended)
    facts, found = ended.value["read"], ended.value["verified"]
    for answer in (facts, found):
        assert answer.get("code", 0) in READ_CODES, (what, answer)
    if "error" not in facts:
        assert facts["wrong"] == 0, (what, facts)
        lost = readers.VECTORS - facts["served"]
        assert lost <= {"shard": readers.SHARD_ROWS, "index": readers.VECTORS}.get(kind, 0), (what, facts)
    if facts != sound.facts or harmed(sound, place, kind):
        assert "error" in found or found["damage"], f"verify overlooked {what}: {facts}"

    ended = ask(warm, "mended", place)
    assert ended.code == 0, (what, ended)
    mended = ended.value
    if "error" in mended["repaired"]:  # by chance it says that it is of a newer format
        assert mended["repaired"]["code"] == 3, (what, mended)
        assert "Upgrade" in mended["repaired"]["message"], (what, mended)
        return
    again, after = mended["again"], mended["read"]
    trial.trial(lost=readers.VECTORS - after["served"], wrong=after["wrong"])
    assert (again["id"], again["wrong"]) == (sound.id, 0), (what, again)
    assert again["encoded"] <= (readers.SHARD_ROWS if kind == "shard" else 0), (what, again)
    assert (after["served"], after["wrong"]) == (readers.VECTORS, 0), (what, after)
    assert mended["verified"]["damage"] == [], (what, mended)


def harmed(sound: Sound, place: Path, kind: str) -> bool:
    """Whether what the files of a class say was changed: of shards and manifests every byte, since they are named by their digest.

    What is changed in an index or chunk, where there is room between what counts, is told by reading them.
    """
    before, after = (
        [path.read_bytes() for path in damage.files_of(at / "store", kind)] for at in (sound.folder, place)
    )
    if kind in ("shard", "manifest"):
        return before != after
    return kind not in ("index", "chunk") and [*map(_said, before)] != [*map(_said, after)]


def _said(data: bytes) -> Any:
    """The JSON values of a file, which spaces between them do not change."""
    try:
        lines = data.decode().splitlines() if b"\n{" in data else [data.decode()]
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError:
        return data

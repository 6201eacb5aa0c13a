"""B3 26: a command that is interrupted or terminated keeps what it has encoded, says so, and ends with 130 or 143."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import cli.start
from cachestore.encoders import open_encoder
from cachestore.encoders.hashing import HashingEncoder
from tests.faults import trials
from tests.faults.invariants import check
from tests.faults.ledger import Ledger
from tests.faults.record import Record
from tests.faults.warm import Warm, wait_until

Recording = Callable[[str], Record]
HERE = "tests.faults.test_signals:"
ROWS = 1500
WINDOW = 1024
ENCODER = {"type": "hashing", "dim": 8}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def command(folder: str, arguments: Sequence[str]) -> None:
    """What the console script does, with an encoder that takes its time and counts what it has finished."""
    notes = Ledger(Path(folder) / f"ledger-{time.monotonic_ns()}")
    encode = HashingEncoder.encode

    def slowly(self: HashingEncoder, payloads: Sequence[bytes]) -> NDArray[np.float32]:
        time.sleep(len(payloads) / 5000)
        vectors = encode(self, payloads)
        notes.encoded(len(payloads))
        return vectors

    HashingEncoder.encode = slowly  # type: ignore[method-assign]
    sys.argv = ["cachestore", *arguments]
    cli.start.main()


def look(folder: str) -> dict[str, Any]:
    """What a store holds of the table."""
    place = Path(folder)
    found = check(place / "store", trials.payloads(place), set(), open_encoder(ENCODER))
    return {"stored": found.stored, "wrong": found.wrong, "partial": found.partial}


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.long)])
def test_a_stopped_build_keeps_what_it_has_encoded(
    warm: Warm, folder: Path, record: Recording, number: signal.Signals, kills: int
) -> None:
    rolls = random.Random(number)
    kept = []
    with record(f"26 {number.name} to a build") as trial:
        for turn in range(kills):
            place = trials.fresh(folder / str(turn), ROWS, ROWS)
            arguments = ["build", str(place / "table.csv"), "--column", "text", "--encoder", json.dumps(ENCODER)]
            arguments += ["--store", str(place / "store"), "--json"]
            child = warm.start(HERE + "command", folder=str(place), arguments=arguments)
            wait_until(lambda place=place: trials.told(place)[0] > 0, "something to be encoded")
            time.sleep(rolls.uniform(0, 0.2))
            child.send(number)
            ended = child.wait()
            assert ended.code == CODES[number], ended
            said = json.loads(ended.out)["error"]
            assert (said["type"], said["exit_code"]) == ("Interrupted", CODES[number])
            assert ended.err == ""
            facts = warm.run(HERE + "look", folder=str(place)).facts
            encoded = trials.told(place)[0]
            # all of it, unless the signal came in the moment in which a window was handed over
            lost = encoded - facts["stored"]
            assert lost == 0 or (lost <= WINDOW and lost & (lost - 1) == 0), (encoded, facts)
            kept.append(facts["stored"])
            again = warm.run(HERE + "command", folder=str(place), arguments=arguments)
            assert (again.code, json.loads(again.out)["encoded"]) == (0, ROWS - facts["stored"]), again
            after = warm.run(HERE + "look", folder=str(place)).facts
            trial.trial(lost=ROWS - after["stored"], wrong=facts["wrong"] + after["wrong"])
            assert (facts["partial"], after["partial"], after["stored"]) == ([], [], ROWS)
    assert max(kept) > 0


def test_a_second_sigterm_changes_nothing(warm: Warm, folder: Path) -> None:
    place = trials.fresh(folder / "trial", ROWS, ROWS)
    arguments = ["build", str(place / "table.csv"), "--column", "text", "--encoder", "hashing"]
    child = warm.start(HERE + "command", folder=str(place), arguments=[*arguments, "--store", str(place / "store")])
    wait_until(lambda: trials.told(place)[0] > 0, "something to be encoded")
    child.send(signal.SIGTERM)
    child.send(signal.SIGTERM)
    ended = child.wait()
    assert (ended.code, ended.out) == (143, "")
    assert ended.err == "error: interrupted; vectors already stored are kept\n"

"""What a fault test found, counted: trials, rows lost, rows wrong, seconds. ``make faults`` makes its table of these records.

A record is one JSON line in a file of its own process, in the folder that CACHESTORE_FAULTS_RECORD names; without it, none is kept.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

VARIABLE = "CACHESTORE_FAULTS_RECORD"


@dataclass
class Record:
    """Counts the trials of one fault while its body runs, and writes itself down at the end, also when the test fails.

    ``fault`` begins with the number of the fault: ``"1 SIGKILL at random times"``. Records of one name are added up.
    """

    fault: str
    trials: int = 0
    lost: int = 0
    wrong: int = 0
    seconds: float = 0.0
    failed: bool = False

    def trial(self, *, lost: int = 0, wrong: int = 0) -> None:
        """Add one trial, with the rows that were stored before the fault and are gone, and those that came back different."""
        self.trials += 1
        self.lost += lost
        self.wrong += wrong

    def __enter__(self) -> Self:
        self.seconds = -time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.monotonic()
        self.failed = kind is not None
        folder = os.environ.get(VARIABLE)
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with Path(folder, f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self)) + "\n")


def read(folder: Path) -> list[Record]:
    """The records of a folder, added up by fault, in the order of their numbers."""
    found: dict[str, Record] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            line = Record(**json.loads(text))
            record = found.setdefault(line.fault, Record(line.fault))
            record.trials += line.trials
            record.lost += line.lost
            record.wrong += line.wrong
            record.seconds += line.seconds
            record.failed |= line.failed
    return sorted(found.values(), key=lambda record: (_number(record.fault), record.fault))


def _number(fault: str) -> int:
    first = fault.split(maxsplit=1)[0]
    return int(first) if first.isdigit() else 1000

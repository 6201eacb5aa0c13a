"""The table of faults: what was broken how often, and what was lost. Run by ``make faults``, which records the trials first.

Run as ``python -m benchmarks.faults FOLDER`` with the folder of the records (see tests/faults/record.py).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from benchmarks import common
from tests.faults.record import read


def main(folder: Path, results: Path = common.RESULTS) -> Path:
    """Write faults.json and faults.md; returns the path of the first. Ends the process when a record is of a failed test."""
    records = read(folder)
    if not records:
        raise SystemExit(f"{folder} holds no records. Run: make faults")
    lines = ["| fault | trials | lost rows | wrong rows | time |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {record.fault} | {record.trials:,} | {record.lost} | {record.wrong} | {record.seconds:.1f} s |"
        for record in records
    ]
    lines += [
        "",
        "A row is lost when it was stored before the fault and cannot be read after it, and wrong when what is read differs in a bit.",
        "Times are of all trials of a fault, added up over processes.",
    ]
    report = {
        "config": {"records": len(records)},
        "machine": common.machine(),
        "versions": common.versions("lmdb", "numpy", "pyarrow"),
        "faults": [dataclasses.asdict(record) for record in records],
    }
    path = common.write("faults", "What a store survives", report, lines, results)
    failed = [record.fault for record in records if record.failed]
    if failed:
        raise SystemExit(f"not all passed: {', '.join(failed)}")
    return path


if __name__ == "__main__":
    print(main(Path(sys.argv[1])).with_suffix(".md").read_text(encoding="utf-8"))

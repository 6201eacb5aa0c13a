"""Full fine-tuning of a sentence encoder with a linear head, written by hand: what a frozen run is measured against.

Run as a process of its own: ``python -m benchmarks.fine_tune TABLE TEXT LABEL --rows 640 --precision bfloat16``. It prints one
JSON object: seconds to start, seconds for each row of an epoch, seconds for each row of an evaluation.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

from cachestore.encoders import _torchvision
from cachestore.encoders.locate import packaged_minilm

BATCH = 32
LEARNING_RATE = 2e-5
MAX_TOKENS = 256


def main(table: Path, text: str, label: str, rows: int, precision: str) -> dict[str, float]:
    """Train over ``rows`` rows once, after one step that is not counted, and evaluate as many."""
    began = time.perf_counter()
    _torchvision.make_importable()
    import torch
    from torch.nn import functional
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with table.open(encoding="utf-8", newline="") as file:
        cells = [(row[text], row[label]) for row in csv.DictReader(file)]
    classes = {name: at for at, name in enumerate(dict.fromkeys(name for _, name in cells))}
    folder = packaged_minilm()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    head = torch.nn.Linear(model.config.hidden_size, len(classes))
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    torch.manual_seed(0)
    order = torch.randperm(len(cells))[: rows + BATCH].tolist()

    def scores(picked: list[int]) -> torch.Tensor:
        tokens = tokenizer(
            [cells[row][0] for row in picked], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][:, :, None]
            return head((hidden * mask).sum(1) / mask.sum(1))

    def step(picked: list[int]) -> None:
        targets = torch.tensor([classes[cells[row][1]] for row in picked])
        functional.cross_entropy(scores(picked).float(), targets).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    step(order[:BATCH])
    started = time.perf_counter() - began
    began = time.perf_counter()
    trained = order[BATCH:]
    for at in range(0, len(trained), BATCH):
        step(trained[at : at + BATCH])
    training = (time.perf_counter() - began) / len(trained)
    model.eval()
    began = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(trained), BATCH):
            scores(trained[at : at + BATCH]).argmax(1)
    return {"start": started, "row": training, "evaluated_row": (time.perf_counter() - began) / len(trained)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("text")
    parser.add_argument("label")
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    print(json.dumps(main(**vars(parser.parse_args()))))

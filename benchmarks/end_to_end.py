"""One training of all-MiniLM-L6-v2 and a linear head, by cachestore or by Hugging Face's Trainer, in a process of its own.

``python -m benchmarks.end_to_end cachestore TRAIN.csv --mode lora`` prints one JSON object: ``row``, the seconds that a row
of training takes, from the end of the first step to that of the last of its epoch; ``seconds`` of all; ``peak``, the most memory that
was in use; ``state``, the bytes of the optimizer's state; of ours with ``--validation`` and ``--test``, ``accuracy`` on the test rows, and
``curve``, that of each epoch on the validation rows.

Both train the same module (mean pooling, then the head) on the same texts, pad each batch to its longest text, clip gradients at 1
and step with torch's fused AdamW. cachestore puts texts of about one length together unless it is told not to (``--unsorted``), as
Trainer does when it is told to.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.fine_tune import MAX_TOKENS
from cachestore.encoders import _torchvision
from cachestore.encoders.locate import packaged_minilm

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LORA = {"r": 8, "alpha": 16, "dropout": 0.05}


class Steps:
    """When each step ended, and how many rows it had."""

    def __init__(self) -> None:
        self.ended: list[tuple[float, int]] = []

    def add(self, rows: int) -> None:
        self.ended.append((time.perf_counter(), rows))

    def per_row(self) -> float:
        """Seconds for a row, of all steps but the first."""
        (began, _), (over, _) = self.ended[0], self.ended[-1]
        return (over - began) / sum(rows for _, rows in self.ended[1:])


def config(mode: str, precision: str, epochs: int, batch_size: int, **trainer: Any) -> dict[str, Any]:
    """A config of ours. ``mode``: frozen, lora or full."""
    encoder: dict[str, Any] = {"type": "minilm", "max_sequence_length": MAX_TOKENS, "normalize": False}
    tuning: Mapping[str, Any] = {
        "frozen": {},
        "lora": {"adapter": {"type": "lora", **LORA}},
        "full": {"trainable": True},
    }[mode]
    live = {} if mode == "frozen" else {"batch_size": batch_size, "use_mixed_precision": precision == "bfloat16"}
    return {
        "input_features": [{"name": "text", "type": "text", "encoder": {**encoder, **tuning}}],
        "output_features": [{"name": "category", "type": "category"}],
        "trainer": {"epochs": epochs, "optimizer": {"type": "adamw"}, "early_stop": -1, **live, **trainer},
    }


def by_cachestore(train: Path, held: Mapping[str, Path], settings: dict[str, Any]) -> dict[str, Any]:
    """``held``: the tables of validation and test rows; without any, nothing is evaluated."""
    from trainer import train as train_run
    from trainer import work
    from trainer.events import EpochDone, Event, StepDone

    steps, curve = Steps(), []
    optimizers: list[Any] = []
    build = work.build_optimizer

    def kept(*arguments: Any) -> Any:
        optimizers.append(build(*arguments))
        return optimizers[-1]

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.add(event.rows)
        elif isinstance(event, EpochDone) and "validation" in event.metrics:
            curve.append(event.metrics["validation"]["category"]["accuracy"])

    work.build_optimizer = kept  # type: ignore[attr-defined]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if not held:
            settings = {**settings, "preprocessing": {"split": {"type": "random", "probabilities": [1.0, 0.0, 0.0]}}}
        run = train_run(settings, train, place / "store", output=place / "run", progress=listen, **held)
        accuracy = run.metrics["test"]["category"]["accuracy"] if held else None
    state = sum(tensor.nbytes for tensor in optimizers[-1].state_dict().values())
    return {
        "row": steps.per_row() if steps.ended else None,
        "seconds": time.perf_counter() - began,
        "phases": dict(run.seconds),
        "state": state,
        "accuracy": accuracy,
        "curve": curve,
        "best_epoch": run.best_epoch,
        "learning_rate": run.learning_rate,
        "encoder_learning_rates": dict(run.encoder_learning_rates),
        "batch_size": run.batch_size,
    }


def by_transformers(train: Path, mode: str, precision: str, batch_size: int, *, sort: bool) -> dict[str, Any]:
    """One epoch of Hugging Face's Trainer."""
    _torchvision.make_importable()
    import torch
    from transformers import (
        AutoModel,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    began = time.perf_counter()
    with train.open(encoding="utf-8", newline="") as file:
        cells = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    classes = {name: at for at, name in enumerate(dict.fromkeys(name for _, name in cells))}
    folder = packaged_minilm()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone: Any = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    if mode == "lora":
        from peft import LoraConfig, TaskType, get_peft_model

        settings = LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION,
            r=LORA["r"],
            lora_alpha=LORA["alpha"],
            lora_dropout=LORA["dropout"],
        )
        backbone = get_peft_model(backbone, settings)

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.head = torch.nn.Linear(backbone.config.hidden_size, len(classes))

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any, **others: Any) -> dict[str, Any]:
            hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask[:, :, None]
            scores = self.head((hidden * mask).sum(1) / mask.sum(1))
            return {"loss": torch.nn.functional.cross_entropy(scores.float(), labels), "logits": scores}

    encoded = tokenizer([text for text, _ in cells], truncation=True, max_length=MAX_TOKENS)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": classes[name]}
        for ids, mask, (_, name) in zip(encoded["input_ids"], encoded["attention_mask"], cells, strict=True)
    ]
    steps = Steps()

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            done = len(steps.ended) * batch_size
            steps.add(min(batch_size, len(rows) - done))

    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            output_dir=place,
            per_device_train_batch_size=batch_size,
            num_train_epochs=1,
            learning_rate=2e-5,
            weight_decay=0.01,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=precision == "bfloat16",
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **({"train_sampling_strategy": "group_by_length"} if sort else {}),
        )
        trainer = Trainer(
            model=Classifier(),
            args=arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[Watch()],
        )
        trainer.train()
        state = sum(
            tensor.nbytes
            for each in trainer.optimizer.state.values()
            for tensor in each.values()
            if isinstance(tensor, torch.Tensor)
        )
    return {"row": steps.per_row(), "seconds": time.perf_counter() - began, "state": state}


def peak() -> int:
    """Bytes of memory that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train as told; returns what was measured."""
    if arguments.by == "transformers":
        found = by_transformers(
            arguments.train, arguments.mode, arguments.precision, arguments.batch_size, sort=not arguments.unsorted
        )
    else:
        more = json.loads(arguments.trainer)
        if arguments.mode != "frozen":
            more["bucket_by_length"] = not arguments.unsorted
        settings = config(arguments.mode, arguments.precision, arguments.epochs, arguments.batch_size, **more)
        held = {
            name: getattr(arguments, name) for name in ("validation", "test") if getattr(arguments, name) is not None
        }
        found = by_cachestore(arguments.train, held, settings)
    return {**found, "peak": peak()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("by", choices=["cachestore", "transformers"])
    parser.add_argument("train", type=Path)
    parser.add_argument("--validation", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--mode", choices=["frozen", "lora", "full"], default="full")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--unsorted", action="store_true")
    parser.add_argument("--trainer", default="{}", help="more settings of the trainer section, as JSON")
    print(json.dumps(main(parser.parse_args())))

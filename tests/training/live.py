"""Small configs with encoders in the loop, and what their runs wrote down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.store import tiny_models
from trainer.runs import Run

WORDS = {
    "card": ("please refund the card that I used", "the card was charged", "refund the card"),
    "parcel": ("the parcel arrived late", "the box was open", "how late is the parcel and the box that I paid for"),
    "bank": ("how long does a transfer take", "a transfer to another bank", "transfer"),
}
FAMILIES = ("bert", "gpt2", "bloom", "gptj", "opt", "llama", "t5")
NO_DROPOUT: Mapping[str, Mapping[str, float]] = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bloom": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gptj": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {"dropout": 0.0, "attention_dropout": 0.0},
    "llama": {},
    "t5": {"dropout_rate": 0.0},
}


def saved(models: Path, kind: str = "bert") -> Path:
    """The directory of a tiny model without dropout, saved once."""
    place = models / kind
    return place if place.exists() else tiny_models.save(place, kind, **NO_DROPOUT[kind])


def with_layers_after_pooling(directory: Path) -> Path:
    """A saved model as one of sentence-transformers, with a Dense, a LayerNorm and the norm to length one."""
    tiny_models.make_sentence_model(directory, {"pooling_mode": "mean"}, normalize=False)
    dense = {"in_features": 16, "out_features": 8, "activation_function": "torch.nn.modules.activation.Tanh"}
    parts: list[tuple[str, dict[str, Any], dict[str, torch.Tensor]]] = [
        ("2_Dense", dense, {"linear.weight": torch.randn(8, 16), "linear.bias": torch.randn(8)}),
        ("3_LayerNorm", {"dimension": 8}, {"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)}),
        ("4_Normalize", {}, {}),
    ]
    modules = json.loads((directory / "modules.json").read_text())
    for path, config_json, weights in parts:
        modules.append({"path": path, "type": f"sentence_transformers.models.{path[2:]}"})
        (directory / path).mkdir()
        tiny_models.write_json(directory / path / "config.json", config_json)
        if weights:
            save_file(weights, directory / path / "model.safetensors")
    tiny_models.write_json(directory / "modules.json", modules)
    return directory


def texts(count: int) -> list[dict[str, Any]]:
    """Rows whose topic follows from their text, with a number that has a share in their cost."""
    found: list[dict[str, Any]] = []
    for row in range(count):
        topic = list(WORDS)[row % 3]
        text = WORDS[topic][row // 3 % 3]
        found.append({"text": f"{text} {row % 7}", "title": topic[: 1 + row % 2], "topic": topic, "wait": row * 7 % 50})
    return found


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as a mapping of lists."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def encoder(directory: Path, **settings: Any) -> dict[str, Any]:
    """Settings of a model that computes and stores in float32."""
    usual = {"type": "auto_transformer", "pretrained_model_name_or_path": str(directory)}
    return {**usual, "max_sequence_length": 32, "precision": "float32", "dtype": "float32", **settings}


def text_input(
    directory: Path, *, live: bool | None = None, name: str = "text", column: str = "text", **settings: Any
) -> dict[str, Any]:
    """A text input; ``live`` says whether a frozen encoder is in the loop."""
    made: dict[str, Any] = {"name": name, "type": "text", "column": column, "encoder": encoder(directory, **settings)}
    if live is not None:
        made["preprocessing"] = {"cache_encoder_embeddings": not live}
    return made


def config(*inputs: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A config that predicts the topic, in a few epochs and batches drawn as those of a cached input are."""
    trainer = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "bucket_by_length": False}
    return {
        "input_features": list(inputs),
        "output_features": [{"name": "topic", "type": "category"}],
        **changes,
        "trainer": {**trainer, **changes.get("trainer", {})},
    }


def losses(run: Run) -> list[tuple[int, str, float]]:
    """Epoch, split and loss of every line of a run's metrics."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    outputs = {name for line in lines for name in line["metrics"]}
    name = "combined" if "combined" in outputs else next(iter(outputs))
    return [(line["epoch"], line["split"], line["metrics"][name]["loss"]) for line in lines]


def assert_same_losses(one: Run, other: Run, tolerance: float = 1e-4) -> None:
    """Two runs had the same losses in every epoch and split."""
    pairs = list(zip(losses(one), losses(other), strict=True))
    assert pairs
    for (epoch, split, loss), (also_epoch, also_split, also) in pairs:
        assert (epoch, split) == (also_epoch, also_split)
        assert abs(loss - also) < tolerance, (epoch, split, loss, also)

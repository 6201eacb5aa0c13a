"""Configs of Ludwig's pages on fine-tuning run as they are written, apart from the place of the model, and do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import live
from trainer import Run, load_config, train
from trainer.checkpoint import read_config

ROWS = [
    {"review": row["text"], "title": row["text"], "sentiment": row["topic"], "class": row["topic"]}
    for row in live.texts(36)
]
SENTIMENT = "output_features: [{name: sentiment, type: category}]"
FINE_TUNING = f"""
input_features: [{{name: review, type: text}}]
{SENTIMENT}
defaults:
  text:
    encoder:
      type: bert
      trainable: true
trainer:
  epochs: 5
  batch_size: auto
  learning_rate: 0.00001
  learning_rate_scheduler:
    warmup_fraction: 0.2
    decay: linear
  optimizer:
    type: adamw
  use_mixed_precision: true
"""
CACHED = f"""
input_features:
 - name: review
   type: text
   encoder:
     type: auto_transformer
     pretrained_model_name_or_path: bert-base-uncased
     trainable: false
   preprocessing:
     cache_encoder_embeddings: true
{SENTIMENT}
trainer: {{epochs: 3}}
"""
LORA = f"""
input_features:
 - name: review
   type: text
   encoder:
     type: auto_transformer
     pretrained_model_name_or_path: meta-llama/Llama-2-7b-hf
     trainable: true
     adapter: ADAPTER
{SENTIMENT}
trainer: {{epochs: 2}}
"""
FSDP = """
input_features:
- name: title
  type: text
  encoder:
    type: auto_transformer
    pretrained_model_name_or_path: bigscience/bloom-3b
    trainable: true
output_features:
- name: class
  type: category
trainer:
  learning_rate: 1.0e-05
  epochs: 3
backend:
  type: ray
  trainer:
    strategy: fsdp
"""
DDP = f"""
input_features:
 - name: review
   type: text
   encoder:
     type: auto_transformer
     pretrained_model_name_or_path: gpt2
     trainable: true
{SENTIMENT}
trainer:
  epochs: 5
  learning_rate: auto
  learning_rate_scaling: sqrt
  learning_rate_scheduler:
    warmup_fraction: 0.2
    decay: linear
  optimizer:
    type: adamw
  use_mixed_precision: true
  evaluate_training_set: false
backend:
  type: ray
  trainer:
    strategy: ddp
"""


def trained(text: str, feature: str, model: Path, place: Path, *overrides: str) -> Run:
    """A run of the config on a small table, its model taken from a directory."""
    path = place / "config.yaml"
    path.write_text(text, encoding="utf-8")
    where = f"input_features.{feature}.encoder.pretrained_model_name_or_path={model}"
    config = load_config(path, [where, *overrides])
    return train(config, live.columns(ROWS), place / "store", output=place / "run")


def encoder_of(run: Run) -> dict[str, Any]:
    written = read_config(run.path)["input_features"][0]["encoder"]
    assert isinstance(written, dict)
    return written


def test_full_fine_tuning_by_defaults_with_warm_up_decay_and_mixed_precision(models: Path, tmp_path: Path) -> None:
    run = trained(FINE_TUNING, "review", live.saved(models), tmp_path)
    written = read_config(run.path)["trainer"]
    assert isinstance(written["batch_size"], int)  # auto, found and kept
    assert (run.learning_rate, run.encoder_learning_rates) == (1e-5, {"review": 1e-5})
    assert (run.epochs, written["optimizer"]["type"], written["use_mixed_precision"]) == (5, "adamw", True)
    assert (run.path / "encoders" / "review" / "model.safetensors").exists()
    assert (run.encoded, run.hits) == (0, 0)  # nothing goes through the store


def test_a_frozen_encoder_is_cached(models: Path, tmp_path: Path) -> None:
    run = trained(CACHED, "review", live.saved(models), tmp_path)
    assert run.encoded + run.hits >= len(ROWS) // 2
    assert run.encoder_learning_rates == {}
    assert not (run.path / "encoders").exists()


@pytest.mark.parametrize(
    ("adapter", "r", "alpha", "dropout"),
    [("lora", 8, 16, 0.05), ("{type: lora, r: 16, alpha: 32, dropout: 0.1}", 16, 32, 0.1)],
    ids=["short", "full"],
)
def test_lora_in_its_short_and_its_full_form(
    adapter: str, r: int, alpha: int, dropout: float, models: Path, tmp_path: Path
) -> None:
    run = trained(LORA.replace("ADAPTER", adapter), "review", live.saved(models, "llama"), tmp_path)
    written = encoder_of(run)["adapter"]
    assert (written["type"], written["r"], written["alpha"], written["dropout"]) == ("lora", r, alpha, dropout)
    assert (run.path / "adapters" / "review" / "adapter_config.json").exists()
    assert set(run.encoder_learning_rates) == {"review"}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.use_.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("text", "kind", "feature"), [(FSDP, "bloom", "title"), (DDP, "gpt2", "review")], ids=["fsdp", "ddp"]
)
def test_full_fine_tuning_in_ray(text: str, kind: str, feature: str, models: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    run = trained(text, feature, live.saved(models, kind), tmp_path, "backend.trainer.num_workers=2")
    written = read_config(run.path)["trainer"]
    assert run.epochs == written["epochs"]
    assert (run.path / "encoders" / feature / "model.safetensors").exists()
    if text == DDP:  # √2 times the rates of one worker, whose rate for a whole encoder is 2e-5
        assert run.encoder_learning_rates[feature] == pytest.approx(2e-5 * 2**0.5)

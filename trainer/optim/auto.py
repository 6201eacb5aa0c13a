"""The learning rates that ``auto`` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# By what of an encoder is trained, for Adam and AdamW; those in use for models of 20 million to 7 billion weights. Full
# fine-tuning: Devlin et al. 2019 for texts, that of vision transformers for images. An adapter begins as no change at all, so it
# takes more: LoRA (and what multiplies matrices like it) Hu et al. 2021, IA3 Liu et al. 2022, VeRA Kopiczko et al. 2024, prompts
# Lester et al. 2021 and Zhang et al. 2023.
_FULL: Final[Mapping[str, float]] = {"text": 2e-5, "image": 5e-5}
_ADAPTERS: Final[Mapping[str, float]] = {
    "lora": 2e-4,
    "adalora": 2e-4,
    "loha": 2e-4,
    "lokr": 2e-4,
    "oft": 2e-4,
    "ia3": 5e-3,
    "vera": 4e-3,
    "prompt_tuning": 1e-2,
    "adaption_prompt": 1e-2,
}


def auto_encoder_rate(kind: str, adapter: str | None) -> float:
    """What ``learning_rate: auto`` means to the encoder of a text or image input, by the type of its adapter; None is full fine-tuning."""
    return _FULL[kind] if adapter is None else _ADAPTERS[adapter]


def auto_learning_rate(magnitude: float, hidden: bool) -> float:
    """What ``learning_rate: auto`` means to Adam and AdamW where inputs sum to ``magnitude`` in absolute value.

    Adam moves every weight by about the learning rate, so one step moves a score by about rate × magnitude; what trains
    well is a fixed size of that product. Measured on MiniLM vectors (magnitude 15.5, and 310 when scaled by 20) and hashed
    bags of words (4.2), batch 128, 20 epochs, best validation accuracy, the rates of each row from low to high:

        banking77, linear head      0.001 0.880, 0.003 0.916, 0.01 0.930, 0.03 0.930; × 20: 0.0003 0.923, 0.001 0.931
        banking77, hashed, linear   0.001 0.733, 0.003 0.816, 0.01 0.838, 0.03 0.840, 0.1 0.839
        banking77, hidden layer     0.0003 0.891, 0.001 0.920, 0.003 0.923, 0.01 0.922, 0.03 0.913; × 20: 0.0003 0.928
        polarity, linear head       0.0003 0.744, 0.001 0.757, 0.003 0.759, 0.01 0.766, 0.03 0.768; × 20: 0.001 0.767
        polarity, hidden layer      0.0003 0.768, 0.001 0.777, 0.003 0.767, 0.01 0.762, 0.03 0.754

    Hence 0.15 / magnitude for a linear head (0.0097 on MiniLM), 0.03 / magnitude with hidden layers (0.0019). It holds beside an
    encoder that is trained, too: all of MiniLM at 2e-5, 840 rows of 20 classes of banking77, batch 32, after one epoch 0.700 at
    0.001 and 0.892 at 0.01.
    """
    product, highest = (0.03, 3e-3) if hidden else (0.15, 3e-2)
    return min(highest, max(1e-4, product / max(magnitude, 1e-9)))

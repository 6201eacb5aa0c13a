"""What other libraries make of a payload, one by one: transformers without padding or mask, scikit-learn, torchvision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer

POOLED: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean": lambda states: states.mean(0),
    "sum": lambda states: states.sum(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / len(states) ** 0.5,
    "weightedmean": lambda states: np.average(states, axis=0, weights=np.arange(len(states)) + 1),
    "max": lambda states: states.max(0),
    "cls_pooled": lambda states: states[0],
    "last": lambda states: states[-1],
    "max+last": lambda states: np.concatenate([states.max(0), states[-1]]),
}


def text(directory: Path, payloads: Sequence[bytes], length: int, pooling: str) -> NDArray[np.float64]:
    """Pooled last hidden states (n, dim)."""
    return np.stack([POOLED[pooling](hidden_states(directory, payload, length)) for payload in payloads])


@functools.lru_cache(maxsize=4096)
def hidden_states(directory: Path, payload: bytes, length: int) -> NDArray[np.float64]:
    """The last hidden states of one text: (tokens, dim), no padding, no mask."""
    tokenizer, model = _load(directory)
    inputs = tokenizer(payload.decode(), truncation=True, max_length=length, return_tensors="pt")
    if not inputs["input_ids"].numel():
        inputs = {"input_ids": torch.tensor([[tokenizer.eos_token_id]])}
    with torch.no_grad():
        states: NDArray[np.float64] = model(**inputs).last_hidden_state[0].double().numpy()
    return states


@functools.lru_cache(maxsize=2)
def _load(directory: Path) -> tuple[Any, Any]:
    config = transformers.AutoConfig.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    if config.is_encoder_decoder:
        model = model.get_encoder()
    return transformers.AutoTokenizer.from_pretrained(directory), model


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each at length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def hashing(payloads: Sequence[bytes]) -> NDArray[np.float64]:
    """scikit-learn's vectors of word 1- and 2-grams."""
    vectorizer = HashingVectorizer(n_features=64, ngram_range=(1, 2), alternate_sign=True, norm="l2")
    return np.concatenate([vectorizer.transform([payload.decode()]).toarray() for payload in payloads])

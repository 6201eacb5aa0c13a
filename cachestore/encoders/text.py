"""Vectors of texts by frozen transformers models: one tokenisation and one forward for all encoders that share them.

A vector depends on its own text alone: padding is on the right and masked, pooling never sees it, and the longest text
of a batch changes nothing but speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cachestore.encoders import hardware, model_files, text_model, transformers_model
from cachestore.encoders.batches import Budget, batches, tokens_in_memory, windows
from cachestore.encoders.pooling import Head
from cachestore.encoders.text_model import Collate, load
from cachestore.encoders.text_specs import share_key, weights_key
from cachestore.encoders.tokens import Tokens
from cachestore.errors import EncoderError
from cachestore.keys import Fingerprint, Json

__all__ = ["cuda_has_bfloat16", "encode", "encode_many", "load", "release", "share_key", "uses_cuda"]

_FIRST_WINDOW = 1024
_WINDOW = 8192  # texts tokenised and sorted together: bounds memory, and is plenty for batches of one length
_CPU_TOKENS = 1024  # of a batch for each thread: more often leaves the caches (about 20 % slower at 4096)
_GPU_TOKENS = 65536  # of a batch: less leaves it idle
_FLOATS_PER_TOKEN = 24  # of activations alive at once, for each value of a hidden state: measured on BERT and Llama

_budgets: dict[tuple[Fingerprint, str], Budget] = {}


def encode(
    spec: Mapping[str, Json],
    directory: Path,
    dim: int,
    payloads: Sequence[bytes],
    *,
    batch_tokens: int | None = None,
) -> NDArray[np.float32]:
    """Vectors of texts, (texts, dim) float32, in the order given: ``encode_many`` for one spec."""
    return encode_many([spec], directory, [dim], payloads, batch_tokens=batch_tokens)[0]


def encode_many(
    specs: Sequence[Mapping[str, Json]],
    directory: Path,
    dims: Sequence[int],
    payloads: Sequence[bytes],
    *,
    batch_tokens: int | None = None,
) -> list[NDArray[np.float32]]:
    """Vectors of texts for each spec, (texts, dim) float32, in the order given; equal texts go through the model once.

    ``specs`` must have one ``share_key``. The model is loaded once and shared until ``release``. ``batch_tokens`` is the
    most tokens of a padded batch; None measures which number is fast here.
    Raises DataError for a payload that is not UTF-8; EncoderError when the model cannot be loaded, a text of
    max_sequence_length has no room on the GPU, or vectors are not as long as ``dims`` say.
    """
    if len({share_key(spec) for spec in specs}) != 1:
        raise ValueError("specs of one call must have one share_key")
    if not payloads:
        return [np.empty((0, dim), np.float32) for dim in dims]
    places = {payload: place for place, payload in enumerate(dict.fromkeys(payloads))}
    vectors = _encode(specs, directory, dims, list(places), batch_tokens)
    if len(places) < len(payloads):
        rows = [places[payload] for payload in payloads]
        vectors = [array[rows] for array in vectors]
    return vectors


def _encode(
    specs: Sequence[Mapping[str, Json]],
    directory: Path,
    dims: Sequence[int],
    payloads: Sequence[bytes],
    batch_tokens: int | None,
) -> list[NDArray[np.float32]]:
    tokenizer, backbone = text_model.shared(specs[0], directory)
    device = hardware.device()
    collate = text_model.make_collate(specs[0], tokenizer)
    heads = [
        (text_model.layer_of(spec), text_model.make_head(spec, directory, collate).eval().to(device)) for spec in specs
    ]
    for spec in specs:
        model_files.require_same_head(spec, directory)
    forward = partial(_forward, backbone, heads, collate, device)
    settled = Budget(batch_tokens, fixed=True) if batch_tokens else _budget(specs[0], backbone, device)
    vectors = [torch.empty((len(payloads), dim), dtype=torch.float32, device=device) for dim in dims]
    with torch.inference_mode(), hardware.exact_float32(), transformers_model.quiet():
        for start, window in _tokenised(collate, payloads):
            lengths = [tokens.shape[1] for tokens in window]
            budget = settled.on(sum(lengths))
            for rows in batches(lengths, budget):
                pooled = _timed(forward, [window[row] for row in rows], budget, device)
                places = _moved(torch.tensor(rows) + start, device)
                for into, part in zip(vectors, pooled, strict=True):
                    if part.shape[1] != into.shape[1]:
                        raise EncoderError(
                            f"{directory}: config.json says vectors of {into.shape[1]} values, the model gives {part.shape[1]}."
                        )
                    into[places] = part
    return [array.cpu().numpy() for array in vectors]


def release(spec: Mapping[str, Json] | None = None) -> None:
    """Forget the shared model of one spec, or all of them, so that their memory can be freed."""
    text_model.release(spec)


def uses_cuda() -> bool:
    """Whether encoders run on a GPU here."""
    return hardware.device() == "cuda"


def cuda_has_bfloat16() -> bool:
    """Whether the GPU computes bfloat16 in hardware."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _tokenised(collate: Collate, payloads: Sequence[bytes]) -> Iterator[tuple[int, list[Tokens]]]:
    """Windows of texts as tokens, each with the row it starts at; the next is made while the last is encoded."""
    ranges = windows(len(payloads), _FIRST_WINDOW, _WINDOW)
    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as pool:
        ahead = pool.submit(collate.tokenizer.tokens, payloads[: ranges[0][1]])
        for (start, _), following in zip(ranges, [*ranges[1:], None], strict=True):
            window = ahead.result()
            if following:
                ahead = pool.submit(collate.tokenizer.tokens, payloads[slice(*following)])
            yield start, window


def _forward(
    backbone: nn.Module,
    heads: Sequence[tuple[int | None, Head]],
    collate: Collate,
    device: str,
    texts: Sequence[Tokens],
) -> list[Tensor]:
    inputs = {name: _moved(tensor, device) for name, tensor in collate.pad(texts).items()}
    hidden = text_model.hidden_states(backbone, {layer for layer, _ in heads}, **inputs)
    return [head(hidden[layer], inputs["attention_mask"]) for layer, head in heads]


def _moved(tensor: Tensor, device: str) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor


def _budget(spec: Mapping[str, Json], backbone: nn.Module, device: str) -> Budget:
    """The budget of a model in this process: what was measured is not measured again."""
    key = weights_key(spec), device
    if key not in _budgets:
        default = _GPU_TOKENS if device == "cuda" else _CPU_TOKENS * torch.get_num_threads()
        config: Any = backbone.config
        width = int(getattr(config, "hidden_size", None) or 1024)
        # on a GPU a batch without room is halved, and so is the budget
        most = 2 * default if device == "cuda" else tokens_in_memory(4 * _FLOATS_PER_TOKEN * width)
        _budgets[key] = Budget(default, most=most)
    return _budgets[key]


def _timed(
    forward: Callable[[Sequence[Tokens]], list[Tensor]], texts: Sequence[Tokens], budget: Budget, device: str
) -> list[Tensor]:
    longest = max(tokens.shape[1] for tokens in texts)
    if not budget.measuring or (len(texts) + 1) * longest <= budget.tokens:  # the rest of a window says nothing
        return _within_memory(forward, texts, budget)
    vectors, seconds = hardware.timed(partial(_within_memory, forward, texts, budget), device)
    budget.took(sum(tokens.shape[1] for tokens in texts), seconds)
    return vectors


def _within_memory(
    forward: Callable[[Sequence[Tokens]], list[Tensor]], texts: Sequence[Tokens], budget: Budget
) -> list[Tensor]:
    """``forward``, in halves where the GPU has no room for the whole: a vector does not depend on its batch."""
    longest = max(tokens.shape[1] for tokens in texts)
    try:
        return forward(texts)
    except torch.OutOfMemoryError as error:
        if len(texts) == 1:
            raise EncoderError(
                f"the GPU has no room for one text of {longest} tokens. Free its memory or set a smaller "
                "max_sequence_length."
            ) from error
    torch.cuda.empty_cache()
    budget.too_much(len(texts) * longest)
    half = len(texts) // 2
    parts = _within_memory(forward, texts[:half], budget), _within_memory(forward, texts[half:], budget)
    return [torch.cat(pair) for pair in zip(*parts, strict=True)]

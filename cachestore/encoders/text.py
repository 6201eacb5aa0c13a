"""Text by a transformers model: hidden states and masked pooling, as one module for frozen and trained encoders.

A vector depends on its own text alone: padding is on the right and masked, pooling never sees it, and the longest text
of a batch changes nothing but speed. Pooling and normalisation are computed in float32 whatever the model's precision.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cachestore import keys
from cachestore.encoders import _torchvision
from cachestore.encoders.tokens import Tokenizer, Tokens
from cachestore.errors import EncoderError
from cachestore.keys import Fingerprint, Json

_torchvision.make_importable()

import transformers  # noqa: E402  after the line above
from tokenizers import normalizers  # noqa: E402

_WINDOW = 8192  # texts tokenised and sorted together: bounds memory, and is plenty for batches of one length
_SHARED_BY = ("config", "weights", "tokenizer", "precision", "do_lower_case")

_loaded: dict[Fingerprint, tuple[Any, nn.Module]] = {}
_loading = threading.Lock()


@dataclass(frozen=True)
class Collate:
    """Payloads to the inputs of a TextModule: int64 tensors (batch, tokens), padded on the right."""

    tokenizer: Tokenizer

    def __call__(self, payloads: Sequence[bytes]) -> dict[str, Tensor]:
        return self.pad(self.tokenizer.tokens(payloads))

    def pad(self, texts: Sequence[Tokens]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values) for name, values in self.tokenizer.pad(texts).items()}


class TextModule(nn.Module):
    """A transformers model with pooling on top: the tensors of a batch → (batch, dim) float32."""

    def __init__(self, backbone: nn.Module, reduce_output: str, normalize: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.reduce_output = reduce_output
        self.normalize = normalize

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        hidden = self.backbone(attention_mask=attention_mask, **inputs)[0]
        vectors = pool(hidden.float(), attention_mask, self.reduce_output)
        return nn.functional.normalize(vectors, dim=1) if self.normalize else vectors


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """One vector per text: (batch, tokens, dim) and a (batch, tokens) mask of ones, then zeros → (batch, dim)."""
    match how:
        case "mean":
            return torch.einsum("btd,bt->bd", hidden, mask.to(hidden.dtype)) / mask.sum(1, keepdim=True)
        case "sum":
            return torch.einsum("btd,bt->bd", hidden, mask.to(hidden.dtype))
        case "max":
            return hidden.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
        case "cls_pooled":
            return hidden[:, 0]
        case "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    raise ValueError(how)


def load(spec: Mapping[str, Json], directory: Path) -> tuple[Collate, TextModule]:
    """A model of its own, on the CPU and in train mode: what an encoder that is trained starts from.

    Raises EncoderError when the files are not a model that transformers can load, or lack weights.
    """
    tokenizer, backbone = _load(spec, directory)
    return _collate(spec, tokenizer), _module(spec, backbone).train()


def encode(spec: Mapping[str, Json], directory: Path, dim: int, payloads: Sequence[bytes]) -> NDArray[np.float32]:
    """Vectors of texts, (texts, dim), in the order given; the model is loaded once and shared until ``release``."""
    tokenizer, backbone = _shared(spec, directory)
    collate, module = _collate(spec, tokenizer), _module(spec, backbone).eval()
    device = _device()
    vectors = torch.empty((len(payloads), dim), dtype=torch.float32, device=device)
    with torch.inference_mode(), _exact_float32():
        for start in range(0, len(payloads), _WINDOW):
            window = collate.tokenizer.tokens(payloads[start : start + _WINDOW])
            for rows in _batches([tokens.shape[1] for tokens in window], _tokens_per_batch(device)):
                forward = partial(_forward, module, collate, device)
                pooled = _within_memory(forward, [window[row] for row in rows])
                if pooled.shape[1] != dim:
                    raise EncoderError(
                        f"{directory}: config.json says vectors of {dim} values, the model gives {pooled.shape[1]}."
                    )
                vectors[torch.tensor(rows, device=device) + start] = pooled
    return vectors.cpu().numpy()


def release(spec: Mapping[str, Json] | None = None) -> None:
    """Forget the shared model of one spec, or all of them, so that their memory can be freed."""
    with _loading:
        if spec is None:
            _loaded.clear()
        else:
            _loaded.pop(_share_key(spec), None)


def uses_cuda() -> bool:
    """Whether encoders run on a GPU here."""
    return _device() == "cuda"


def cuda_has_bfloat16() -> bool:
    """Whether the GPU computes bfloat16 in hardware."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _shared(spec: Mapping[str, Json], directory: Path) -> tuple[Any, nn.Module]:
    key = _share_key(spec)
    with _loading:
        if key not in _loaded:
            tokenizer, backbone = _load(spec, directory)
            _loaded[key] = tokenizer, backbone.requires_grad_(False).to(_device())
        return _loaded[key]


def _share_key(spec: Mapping[str, Json]) -> Fingerprint:
    return keys.fingerprint({name: spec[name] for name in _SHARED_BY if name in spec})


def _load(spec: Mapping[str, Json], directory: Path) -> tuple[Any, nn.Module]:
    with _quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            model = _model_class(config, directory)
            options = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model).parameters else {}
            backbone, report = model.from_pretrained(
                directory,
                config=config,
                dtype=getattr(torch, str(spec["precision"])),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except EncoderError:
            raise
        except Exception as error:  # transformers raises whatever its parts raise, each for its own kind of broken file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EncoderError(f"{directory} cannot be loaded as a transformers model: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise EncoderError(
            f"{directory} lacks weights of the model that config.json describes ({', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}). Save the whole model again."
        )
    if spec.get("do_lower_case"):
        _lowercase(tokenizer, directory)
    if hasattr(config, "use_cache"):
        backbone.config.use_cache = False  # keys and values of earlier tokens: only generation reads them
    return tokenizer, backbone


def _model_class(config: Any, directory: Path) -> Any:
    """The class without a head; of an encoder and decoder only the encoder."""
    kind = type(config)
    if kind in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
        found = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING[kind]
    elif kind in transformers.MODEL_MAPPING and not config.is_encoder_decoder:
        found = transformers.MODEL_MAPPING[kind]
    else:
        raise EncoderError(f"{directory}: models of type {config.model_type!r} are not supported yet as text encoders.")
    return found[0] if isinstance(found, tuple) else found


def _lowercase(tokenizer: Any, directory: Path) -> None:
    # in the tokenizer, not on the text: special tokens written in a text are recognised before it
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise EncoderError(f"{directory}: do_lower_case is not supported yet for a tokenizer without tokenizer.json.")
    normalizer = tokenizer.backend_tokenizer.normalizer
    parts = [normalizers.Lowercase(), *([normalizer] if normalizer else [])]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(parts)


def _collate(spec: Mapping[str, Json], tokenizer: Any) -> Collate:
    return Collate(Tokenizer(tokenizer, int(spec["max_sequence_length"])))  # type: ignore[arg-type]


def _module(spec: Mapping[str, Json], backbone: nn.Module) -> TextModule:
    return TextModule(backbone, str(spec["reduce_output"]), bool(spec["normalize"]))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _tokens_per_batch(device: str) -> int:
    # on CPUs more than this leaves the caches (about 20 % slower at 4096 on one thread); on a GPU less leaves it idle
    return 65536 if device == "cuda" else 1024 * torch.get_num_threads()


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows of each batch, longest first, so that little is padding; padded, a batch holds at most ``budget`` tokens."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        end = start + max(1, budget // lengths[order[start]])
        yield order[start:end]
        start = end


def _forward(module: TextModule, collate: Collate, device: str, texts: Sequence[Tokens]) -> Tensor:
    vectors: Tensor = module(**{name: tensor.to(device) for name, tensor in collate.pad(texts).items()})
    return vectors


def _within_memory(forward: Callable[[Sequence[Tokens]], Tensor], texts: Sequence[Tokens]) -> Tensor:
    """``forward``, in halves where the GPU has no room for the whole: a vector does not depend on its batch."""
    try:
        return forward(texts)
    except torch.OutOfMemoryError as error:
        if len(texts) == 1:
            raise EncoderError(
                f"the GPU has no room for one text of {texts[0].shape[1]} tokens. Free its memory or set a smaller "
                "max_sequence_length."
            ) from error
    torch.cuda.empty_cache()
    half = len(texts) // 2
    return torch.cat([_within_memory(forward, texts[:half]), _within_memory(forward, texts[half:])])


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    """float32 products in float32 (no TF32 or bfloat16 in their place), whatever the process has allowed."""
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loading says nothing: what matters of its report is checked and raised here."""
    logging: Any = transformers.utils.logging  # partly untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

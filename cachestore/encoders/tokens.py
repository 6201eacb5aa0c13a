"""Texts to token ids, and ids to the padded arrays of a batch. No torch: arrays are numpy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cachestore.errors import DataError, EncoderError

# Row 0 holds ids; a row 1 holds segments, for the few tokenizers (XLNet's) that set them in a single text.
Tokens: TypeAlias = NDArray[np.int64]

# A text longer than this many characters per token of max_sequence_length is cut before it is tokenised, so that a huge
# cell costs little. Part of what a vector is: change it together with spec.TEXT_PREPROCESSING.
CHARACTERS_PER_TOKEN: Final = 256


@dataclass(frozen=True)
class Tokenizer:
    """A transformers tokenizer with the length at which it cuts, its own special tokens included.

    ``prompt`` stands before every text, so it counts in that length.
    """

    backend: Any
    max_sequence_length: int
    prompt: str = ""

    def __post_init__(self) -> None:
        special = self.backend.num_special_tokens_to_add(pair=False)
        if self.max_sequence_length <= special:
            raise EncoderError(
                f"max_sequence_length {self.max_sequence_length} leaves no room for a text: the tokenizer adds "
                f"{special} of its own. Set it to {special + 1} or more."
            )

    def tokens(self, payloads: Sequence[bytes]) -> list[Tokens]:
        """The tokens of each text, at least one. Raises DataError for a payload that is not UTF-8."""
        most = CHARACTERS_PER_TOKEN * self.max_sequence_length
        encoded = self._encode([(self.prompt + _text(payload))[:most] for payload in payloads])
        rows = [encoded["input_ids"], *([encoded["token_type_ids"]] if self._sets_segments else [])]
        return [np.array(ids, np.int64) if ids[0] else self._of_empty_text for ids in zip(*rows, strict=True)]

    def pad(self, texts: Sequence[Tokens]) -> dict[str, NDArray[np.int64]]:
        """What a model takes, each (texts, tokens of the longest), padded on the right where the mask is 0."""
        lengths = np.array([tokens.shape[1] for tokens in texts])
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded = {"attention_mask": mask.astype(np.int64)}
        for name, padding, values in zip(self._names, self._padding, np.concatenate(texts, axis=1), strict=False):
            padded[name] = np.full(mask.shape, padding, np.int64)
            padded[name][mask] = values
        return padded

    @cached_property
    def prompt_tokens(self) -> int:
        """How many tokens of a text are the prompt's, as sentence-transformers counts: special ones before it with it."""
        ids = self._encode([self.prompt])["input_ids"][0]
        return len(ids) - (bool(ids) and ids[-1] in self.backend.all_special_ids)

    def _encode(self, texts: list[str]) -> Any:
        return self.backend(
            texts,
            truncation=True,
            max_length=self.max_sequence_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=self._sets_segments,
        )

    @property
    def _names(self) -> tuple[str, str]:
        return "input_ids", "token_type_ids"

    @property
    def _padding(self) -> tuple[int, int]:
        # masked out, so any id will do where there is none for it
        known = (self.backend.pad_token_id, self.backend.eos_token_id, 0)
        return next(token for token in known if token is not None), getattr(self.backend, "pad_token_type_id", 0)

    @cached_property
    def _sets_segments(self) -> bool:
        if "token_type_ids" not in self.backend.model_input_names:
            return False
        return any(self.backend("a", return_token_type_ids=True)["token_type_ids"])

    @cached_property
    def _of_empty_text(self) -> Tokens:
        """One token for the empty text of a tokenizer that adds none: a model must have something to look at."""
        for token in (self.backend.eos_token_id, self.backend.pad_token_id, self.backend.bos_token_id):
            if token is not None:
                return np.array([[token], [0]][: 1 + self._sets_segments], np.int64)
        raise EncoderError("an empty text cannot be encoded: the tokenizer has no end, padding or start token.")


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"a text is not UTF-8: {error}") from None

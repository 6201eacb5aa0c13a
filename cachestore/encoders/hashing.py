"""Feature hashing of word n-grams: a baseline that needs no model, for text of any language that separates words.

The vectors are those of scikit-learn's HashingVectorizer with alternate_sign: each n-gram adds +1 or -1 to one of
``dim`` places, both taken from its MurmurHash3 (Austin Appleby's x86 32-bit variant, seed 0), which no process setting
changes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cachestore.errors import DataError
from cachestore.keys import Json

_WORD: Final = re.compile(r"\b\w\w+\b")
_ROWS_PER_BLOCK: Final = 2048
_BYTES_PER_BLOCK: Final = 1 << 20
_FEW: Final = 32


@dataclass(frozen=True)
class HashingEncoder:
    """Texts as hashed counts of their word n-grams."""

    spec: Mapping[str, Json]
    dim: int
    ngram_range: tuple[int, int]
    lowercase: bool
    normalize: bool

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32]:
        vectors = np.zeros((len(payloads), self.dim), np.float32)
        for start, end in _blocks(payloads):
            self._count(payloads[start:end], vectors[start:end])
        if self.normalize:
            lengths = np.sqrt(np.einsum("rd,rd->r", vectors, vectors, dtype=np.float64))
            vectors /= np.where(lengths > 0, lengths, 1)[:, None].astype(np.float32)
        return vectors

    def _count(self, payloads: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Add the n-grams of each payload to its row of ``vectors``."""
        numbers: defaultdict[str, int] = defaultdict(count().__next__)  # of n-grams, in the order first seen
        found: list[int] = []
        counts: list[int] = []
        for payload in payloads:
            text = _text(payload)
            words = _WORD.findall(text.lower() if self.lowercase else text)
            before = len(found)
            for size in range(self.ngram_range[0], self.ngram_range[1] + 1):
                grams = words if size == 1 else map(" ".join, zip(*(words[i:] for i in range(size)), strict=False))
                found.extend(map(numbers.__getitem__, grams))
            counts.append(len(found) - before)
        if not found:
            return
        hashes = murmur3_32([gram.encode() for gram in numbers]).view(np.int32).astype(np.int64)
        places, signs = np.abs(hashes) % self.dim, np.where(hashes >= 0, 1, -1).astype(np.float32)
        grams_of_row = np.asarray(found)
        rows = np.repeat(np.arange(len(payloads)), counts)
        np.add.at(vectors.reshape(-1), rows * self.dim + places[grams_of_row], signs[grams_of_row])


def murmur3_32(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """MurmurHash3 x86 32 with seed 0 of each key, computed for all keys of one length at once."""
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    hashes = np.empty(len(keys), np.uint32)
    for length in np.unique(lengths).tolist():
        same = np.flatnonzero(lengths == length)
        data = np.frombuffer(b"".join([keys[i] for i in same.tolist()]), np.uint8).reshape(len(same), length)
        hashes[same] = _murmur3_32(data)
    return hashes


def _murmur3_32(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The hash of each row of bytes."""
    rows, length = data.shape
    padded = np.zeros((rows, -(-length // 4) * 4), np.uint8)
    padded[:, :length] = data
    blocks = padded.view("<u4")
    if rows < _FEW:
        state = np.array([_chained(row[: length // 4]) for row in blocks], np.uint32)
    else:
        state = np.zeros(rows, np.uint32)
        for block in range(length // 4):
            state = _rotate(state ^ _scramble(blocks[:, block]), 13) * np.uint32(5) + np.uint32(0xE6546B64)
    if length % 4:
        state = state ^ _scramble(blocks[:, -1])
    state = state ^ np.uint32(length)
    state = (state ^ (state >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    state = (state ^ (state >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return state ^ (state >> np.uint32(16))


def _chained(blocks: NDArray[np.uint32]) -> int:
    """The state after all blocks of one key: a word of megabytes is one, and an array of one number costs as much as of a hundred."""
    state = 0
    for start in range(0, len(blocks), 1 << 16):
        for block in _scramble(blocks[start : start + (1 << 16)]).tolist():
            state ^= block
            state = (((state << 13 | state >> 19) & 0xFFFFFFFF) * 5 + 0xE6546B64) & 0xFFFFFFFF
    return state


def _scramble(block: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return _rotate(block * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)


def _rotate(value: NDArray[np.uint32], bits: int) -> NDArray[np.uint32]:
    return (value << np.uint32(bits)) | (value >> np.uint32(32 - bits))


def _blocks(payloads: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Ranges of rows small enough that their n-grams fit in little memory."""
    start, size = 0, 0
    for row, payload in enumerate(payloads):
        if row > start and (row - start >= _ROWS_PER_BLOCK or size + len(payload) > _BYTES_PER_BLOCK):
            yield start, row
            start, size = row, 0
        size += len(payload)
    if payloads:
        yield start, len(payloads)


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"a text is not UTF-8: {error}") from None

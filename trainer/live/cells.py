"""The cells of an input whose encoder runs in the loop, kept as the encoder takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Cells(Protocol):
    """One cell a row. ``present`` (rows,): false where the cell is missing; what stands there then counts for nothing."""

    @property
    def present(self) -> NDArray[np.bool_]: ...

    def __len__(self) -> int: ...

    def take(self, places: NDArray[np.int64]) -> Cells:
        """Rows by number, in that order, repeats allowed."""

    def lengths(self) -> NDArray[np.int64]:
        """What a row costs the encoder, (rows,): tokens, or pixels."""

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """What tells these rows from others, by a name of its own."""


@final
@dataclass(frozen=True)
class TextCells:
    """Tokenised texts: ``tokens`` (1 or 2, all of them), as ``cachestore.encoders.tokens`` has them; row i is [start, stop) of it."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    present: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Sequence[NDArray[Any]], present: NDArray[np.bool_]) -> TextCells:
        """From the tokens (1 or 2, length) of every text."""
        stops = np.cumsum([text.shape[1] for text in texts], dtype=np.int64)
        tokens = np.concatenate(texts, axis=1).astype(np.int32) if texts else np.zeros((1, 0), np.int32)
        return cls(tokens, np.concatenate([np.zeros(1, np.int64), stops])[:-1], stops, present)

    @classmethod
    def joined(cls, parts: Sequence[TextCells]) -> TextCells:
        """The rows of all, one part after another."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls.of([], np.zeros(0, np.bool_))
        firsts = np.cumsum([0, *(part.tokens.shape[1] for part in parts[:-1])], dtype=np.int64)
        return cls(
            np.concatenate([part.tokens for part in parts], axis=1),
            np.concatenate([part.starts + first for part, first in zip(parts, firsts, strict=True)]),
            np.concatenate([part.stops + first for part, first in zip(parts, firsts, strict=True)]),
            np.concatenate([part.present for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, places: NDArray[np.int64]) -> TextCells:
        """Rows by number; the tokens themselves are shared."""
        return replace(self, starts=self.starts[places], stops=self.stops[places], present=self.present[places])

    def lengths(self) -> NDArray[np.int64]:
        """Tokens by row."""
        return self.stops - self.starts

    def filled(self, tokens: NDArray[Any], rows: NDArray[np.bool_]) -> TextCells:
        """The same with a text of these ``tokens`` (1 or 2, length), present, in the marked ``rows``."""
        first, length = self.tokens.shape[1], tokens.shape[1]
        return TextCells(
            np.concatenate([self.tokens, tokens.astype(np.int32)], axis=1),
            np.where(rows, first, self.starts),
            np.where(rows, first + length, self.stops),
            self.present | rows,
        )

    def most_frequent(self, rows: NDArray[np.bool_]) -> NDArray[np.int32] | None:
        """The tokens that most of the marked ``rows`` have that are present, of several the first; None where none is present."""
        chosen = self.take(np.flatnonzero(rows & self.present)).texts()
        counts = Counter(text.tobytes() for text in chosen)
        if not counts:
            return None
        most = max(counts, key=counts.__getitem__)
        return next(text for text in chosen if text.tobytes() == most)

    def texts(self) -> list[NDArray[np.int32]]:
        """The tokens (1 or 2, length) of every row."""
        return [
            self.tokens[:, start:stop] for start, stop in zip(self.starts.tolist(), self.stops.tolist(), strict=True)
        ]

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """The tokens of the rows, one after another, and where they end."""
        whole = np.concatenate(self.texts(), axis=1) if len(self) else self.tokens[:, :0]
        yield "tokens", torch.from_numpy(np.ascontiguousarray(whole))
        yield "lengths", torch.from_numpy(self.lengths())
        yield "present", torch.from_numpy(self.present)

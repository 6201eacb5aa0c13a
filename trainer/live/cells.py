"""The cells of an input whose encoder runs in the loop, kept as the encoder takes them."""

from __future__ import annotations

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
        ends = np.cumsum([text.shape[1] for text in texts], dtype=np.int64)
        return cls(
            np.concatenate(texts, axis=1).astype(np.int32), np.concatenate([ends[:0], [0], ends[:-1]]), ends, present
        )

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, places: NDArray[np.int64]) -> TextCells:
        """Rows by number; the tokens themselves are shared."""
        return replace(self, starts=self.starts[places], stops=self.stops[places], present=self.present[places])

    def lengths(self) -> NDArray[np.int64]:
        """Tokens by row."""
        return self.stops - self.starts

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

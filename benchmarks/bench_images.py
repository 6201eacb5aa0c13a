"""mobilenet_v2 over pictures: the encoder beside a plain torchvision loop (PIL, batches of 32, float32), taking turns.

Both start from the bytes of the files and end with an array of vectors. With a column of labels and one of splits, a linear head
is trained on the encoder's vectors, to see that they are worth something. Without --data, pictures are made up.
"""

from __future__ import annotations

import argparse
import csv
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks import common
from cachestore.encoders import Encoded, Encoder, open_encoder, torchvision_models


def plain(weights: Path, payloads: Sequence[bytes]) -> NDArray[np.float32]:
    """What one would write by hand."""
    model = torchvision_models.models.mobilenet_v2()
    model.load_state_dict(safetensors.torch.load_file(weights))
    model.classifier = torch.nn.Identity()
    model.eval()
    transform = torchvision_models.models.MobileNet_V2_Weights.DEFAULT.transforms()
    found = []
    with torch.inference_mode():
        for start in range(0, len(payloads), 32):
            batch = [
                transform(Image.open(io.BytesIO(payload)).convert("RGB")) for payload in payloads[start : start + 32]
            ]
            found.append(model(torch.stack(batch)))
    vectors: NDArray[np.float32] = torch.cat(found).numpy()
    return vectors


def ours(encoder: Encoder, payloads: Sequence[bytes]) -> NDArray[np.float32]:
    """The encoder's vectors; none may be refused."""
    found = encoder.encode(payloads)
    if not isinstance(found, Encoded) or found.refused:
        raise RuntimeError("pictures were refused")
    return found.vectors


def head_accuracy(vectors: NDArray[np.float32], labels: Sequence[str], splits: Sequence[str]) -> float:
    """Test accuracy of a linear head that was trained on the rows of the split "train"."""
    torch.manual_seed(0)
    names = sorted(set(labels))
    targets = torch.tensor([names.index(label) for label in labels])
    train = torch.tensor([split == "train" for split in splits])
    test = torch.tensor([split == "test" for split in splits])
    inputs = torch.from_numpy(vectors)
    inputs = (inputs - inputs[train].mean(0)) / inputs[train].std(0).clamp_min(1e-6)
    head = torch.nn.Linear(inputs.shape[1], len(names))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(inputs[train]), targets[train], label_smoothing=0.1).backward()
        optimizer.step()
    with torch.inference_mode():
        right = head(inputs[test]).argmax(1) == targets[test]
    return float(right.float().mean())


def read(data: Path, rows: int | None) -> tuple[list[bytes], list[str], list[str]]:
    """Payloads, labels and splits of ``data``/data.csv (image_path, label, split)."""
    with (data / "data.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    lines = lines[:: max(1, len(lines) // rows)][:rows] if rows else lines
    payloads = [(data / line["image_path"]).read_bytes() for line in lines]
    return payloads, [line["label"] for line in lines], [line["split"] for line in lines]


def made_up(rows: int) -> tuple[list[bytes], list[str], list[str]]:
    """Pictures of two kinds."""
    chance = np.random.default_rng(0)
    payloads = []
    for row in range(rows):
        file = io.BytesIO()
        coarse = chance.integers(0, 128, (4 + 8 * (row % 2), 6, 3), np.uint8)
        Image.fromarray(coarse).resize((213, 160), Image.Resampling.BICUBIC).save(file, "JPEG")
        payloads.append(file.getvalue())
    splits = ["test" if row % 4 > 1 else "train" for row in range(rows)]
    return payloads, [str(row % 2) for row in range(rows)], splits


def main(
    data: Path | None = None,
    weights: Path | None = None,
    rows: int | None = None,
    turns: int = 3,
    results: Path = common.RESULTS,
) -> Path:
    """Run the comparison and write its result; returns the JSON file."""
    payloads, labels, splits = read(data, rows) if data else made_up(rows or 64)
    with tempfile.TemporaryDirectory() as folder:
        if weights is None:
            torch.manual_seed(0)
            weights = Path(folder) / "random.safetensors"
            safetensors.torch.save_file(torchvision_models.models.mobilenet_v2().state_dict(), weights)
        encoder = open_encoder({"type": "mobilenetv2", "weights_path": str(weights)})
        reference = plain(weights, payloads[:64])  # and both are warm
        ours(encoder, payloads[:64])
        seconds: dict[str, list[float]] = {"plain": [], "encoder": []}
        for _ in range(turns):
            seconds["plain"] += common.timed(lambda: plain(weights, payloads), 1)
            seconds["encoder"] += common.timed(lambda: ours(encoder, payloads), 1)
        vectors = ours(encoder, payloads)
    near = vectors[: len(reference)]
    lengths = np.linalg.norm(near, axis=1) * np.linalg.norm(reference, axis=1)
    cosine = float(((near * reference).sum(1) / lengths).min())
    ratio = common.median([a / b for a, b in zip(seconds["plain"], seconds["encoder"], strict=True)])
    accuracy = head_accuracy(vectors, labels, splits)
    speeds = {name: len(payloads) / common.median(values) for name, values in seconds.items()}
    report: dict[str, Any] = {
        "config": {"pictures": len(payloads), "turns": turns, "spec": dict(encoder.spec), "made_up": data is None},
        "machine": common.machine(),
        "versions": common.versions("torch", "torchvision", "pillow"),
        "seconds": seconds,
        "ratio": ratio,
        "min_cosine": cosine,
        "head_accuracy": accuracy,
    }
    lines = [
        f"mobilenet_v2 over {len(payloads):,} pictures, {encoder.spec['precision']} (medians of {turns} turns):",
        "",
        "| | |",
        "|---|---|",
        f"| plain torchvision loop, PIL, batches of 32, float32 | {speeds['plain']:.1f} pictures/s |",
        f"| the encoder | {speeds['encoder']:.1f} pictures/s |",
        f"| **ratio** (wanted: at least 1.5) | **{ratio:.2f}** |",
        f"| smallest cosine of a vector to the loop's (wanted: at least 0.999) | {cosine:.6f} |",
        f"| test accuracy of a linear head (wanted on data/clothing: at least 0.68) | {accuracy:.3f} |",
    ]
    return common.write("images", "Pictures through mobilenet_v2", report, lines, results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a folder with data.csv (image_path, label, split)")
    parser.add_argument("--weights", type=Path, help="weights of torchvision's mobilenet_v2, as safetensors")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    path = main(given.data, given.weights, given.rows, given.turns)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))

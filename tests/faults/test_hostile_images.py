"""B3 24: pictures that nobody meant well with. Each is a row skipped with a reason or a right vector, and the others are built."""

from __future__ import annotations

import io
import os
import resource
import socket
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cachestore import open_store
from cachestore.build import run
from cachestore.keys import fingerprint, key
from cachestore.manifest import PRESENT, SKIPPED
from tests.faults import invariants
from tests.faults.record import Record
from tests.faults.warm import Warm
from tests.store.counting import CountingEncoder
from tests.store.pictures import SIDE, DecodedPictures

Recording = Callable[[str], Record]
Colour = tuple[int, int, int]


def build_measured(folder: str, data: str) -> dict[str, Any]:
    """Build a table of pictures; what was skipped and why, every row's pixels, how much more memory it took, and how long."""
    with open_store(Path(folder) / "store") as store:
        run(store, {"text": ["warm"]}, {"text": CountingEncoder()})
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        built = run(store, Path(folder) / data, {"image": DecodedPictures()})
        vectors, _ = store.vectors(built.manifest, "image")
        return {
            "counts": vars(built.counts),
            "skipped": {str(cell.row): cell.why for cell in built.skipped_cells},
            "MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10,
            "children": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
            "seconds": time.monotonic() - began,
            "reasons": store.reasons(built.manifest, "image").tolist(),
            "pixels": np.rint(vectors.astype(np.float64) * 255).astype(int).reshape(-1, SIDE * SIDE, 3).tolist(),
        }


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(side: int = 50_000) -> bytes:
    """A whole PNG of side × side white pixels, one bit each."""
    packed = zlib.compressobj()
    line = b"\0" + b"\xff" * (side // 8)
    pixels = b"".join(packed.compress(line) for _ in range(side)) + packed.flush()

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


def palette() -> Image.Image:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


def turned() -> bytes:
    """Red over blue, saved lying on its side with a note of how to hold it."""
    upright = Image.new("RGB", (16, 16), (255, 0, 0))
    upright.paste((0, 0, 255), (0, 8, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it
    return saved(upright.rotate(90), "JPEG", quality=95, exif=exif)


def animated() -> bytes:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


RED, WHITE = (255, 0, 0), (255, 255, 255)
FILES: dict[str, tuple[Callable[[], bytes], str | Colour]] = {
    "empty.jpg": (lambda: b"", "is empty: 0 bytes"),
    "truncated.jpg": (lambda: saved(noise(), "JPEG", quality=95)[:3000], "truncated"),
    "cut.png": (lambda: saved(noise(), "PNG")[:3000], "truncated"),
    "bomb.png": (bomb, "pixels"),
    "one.png": (lambda: saved(Image.new("RGB", (1, 1), RED), "PNG"), RED),
    "cmyk.jpg": (lambda: saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), RED),
    "deep.png": (lambda: saved(Image.fromarray(np.full((16, 16), 0x80FF, np.uint16)), "PNG"), (0x80, 0x80, 0x80)),
    "palette.png": (lambda: saved(palette(), "PNG", transparency=0), WHITE),
    "animated.gif": (animated, RED),
    "html.jpg": (lambda: b"<!doctype html><title>404</title>", "is an HTML page"),
    "noise.jpg": (lambda: np.random.default_rng(1).bytes(5000), "is not a picture"),
    "svg.png": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
    "good.jpg": (lambda: saved(Image.new("RGB", (300, 200), WHITE), "JPEG"), WHITE),
}


def near(pixels: Any, colour: Colour) -> bool:
    return bool(np.abs(np.array(pixels) - colour).max() <= 8)


def test_every_hostile_picture_is_skipped_with_a_reason_or_has_a_right_vector(
    warm: Warm, folder: Path, record: Recording
) -> None:
    for name, (made, _) in FILES.items():
        (folder / name).write_bytes(made())
    (folder / "turned.jpg").write_bytes(turned())
    cells = [*FILES, "turned.jpg"]
    (folder / "pictures.csv").write_text("image\n" + "".join(f"{cell}\n" for cell in cells))
    with record("24 hostile images") as trial:
        found = warm.run(
            "tests.faults.test_hostile_images:build_measured", folder=str(folder), data="pictures.csv", timeout=300
        ).facts
        for row, (name, (_, expected)) in enumerate(FILES.items()):
            trial.trial()
            if isinstance(expected, str):
                why = found["skipped"].get(str(row), "")
                assert why.startswith(repr(name)), (name, found)
                assert expected in why, (name, why)
                assert found["reasons"][row] == SKIPPED
            else:
                assert found["reasons"][row] == PRESENT, (name, found["skipped"])
                assert near(found["pixels"][row], expected), name
        upright = np.array(found["pixels"][cells.index("turned.jpg")]).reshape(SIDE, SIDE, 3)
        assert near(upright[: SIDE // 2 - 1], RED)
        assert near(upright[SIDE // 2 + 1 :], (0, 0, 255))
    assert found["MB"] < 200, found
    assert found["seconds"] < 60, found

    encoder = DecodedPictures()
    good = [(folder / cell).read_bytes() for row, cell in enumerate(cells) if found["reasons"][row] == PRESENT]
    committed = [key(fingerprint(encoder.spec), payload) for payload in good]
    checked = invariants.check(folder / "store", good, committed, encoder)
    assert checked.sound, checked
    assert checked.stored == len(good)


def test_places_that_are_no_files_of_the_data_are_skipped_and_nothing_waits(
    warm: Warm, folder: Path, record: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "good.png").write_bytes(saved(Image.new("RGB", (2, 2), RED), "PNG"))
    (folder / "passwd.jpg").symlink_to("/etc/passwd")
    (folder / "etc").symlink_to("/etc")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    os.truncate(os.open(folder / "sparse.jpg", os.O_CREAT | os.O_WRONLY), 1 << 40)
    expected = {
        "passwd.jpg": "leads out of the folder",
        "etc/passwd": "leads out of the folder",
        "../../../../../../../../etc/passwd": "leads out of the folder",
        "/etc/passwd": "is not a picture",  # as its writer said
        "zero.jpg": "leads out of the folder",
        "/dev/zero": "is a pipe, socket or device",
        "/proc/self/mem": "is empty: 0 bytes",
        "folder.jpg": "is a directory",
        "pipe.jpg": "is a pipe, socket or device",
        "socket.jpg": "is a pipe, socket or device",
        "sparse.jpg": "over the limit",
        "x" * 5000: "cannot be read",
    }
    cells = ["good.png", *expected]
    (folder / "places.csv").write_text("image\n" + "".join(f"{cell}\n" for cell in cells))
    monkeypatch.chdir(folder)
    with record("24 hostile images") as trial, socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        found = warm.run(
            "tests.faults.test_hostile_images:build_measured", folder=str(folder), data="places.csv", timeout=60
        ).facts
        for row, (cell, why) in enumerate(expected.items(), start=1):
            trial.trial()
            assert why in found["skipped"][str(row)], (cell, found["skipped"])
    assert found["reasons"] == [PRESENT, *[SKIPPED] * len(expected)]
    assert near(found["pixels"][0], RED)
    assert found["MB"] < 200, found
    assert found["seconds"] < 20, found

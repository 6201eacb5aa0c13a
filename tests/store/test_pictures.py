"""Pictures to pixels: the rules of decoding, the guard around it, and the pool of processes that does it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cachestore.encoders import picture_worker, pictures
from cachestore.encoders.pictures import Decoder

WHOLE = {"resize": [16, 16], "crop": None, "interpolation": "nearest"}


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(height: int = 16, width: int = 16) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(2)
    yield decoder
    decoder.close()


def decode(decoder: Decoder, payload: bytes, plan: dict[str, Any] = WHOLE) -> NDArray[np.uint8] | str:
    size = plan["crop"] or plan["resize"]
    out = np.empty((1, *size, 3), np.uint8)
    reason = decoder.start([payload], plan, out)[0].result()
    return reason if reason is not None else out[0]


def test_pixels_are_those_of_the_file(decoder: Decoder) -> None:
    pixels = decode(decoder, saved(Image.fromarray(gradient())))
    np.testing.assert_array_equal(pixels, gradient())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_every_format_is_read(decoder: Decoder, kind: str) -> None:
    pixels = decode(decoder, saved(Image.new("RGB", (16, 16), (200, 100, 50)), kind))
    assert not isinstance(pixels, str)
    assert np.abs(pixels.astype(int) - [200, 100, 50]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(decoder: Decoder, orientation: int) -> None:
    turned = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(decoder, saved(Image.fromarray(gradient()), "PNG", exif=exif))
    np.testing.assert_array_equal(pixels, turned(gradient()))


def test_a_broken_exif_counts_as_none(decoder: Decoder) -> None:
    payload = saved(Image.fromarray(gradient()), "PNG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xffgarbage")
    np.testing.assert_array_equal(decode(decoder, payload), gradient())


def rgba(alpha: int) -> Image.Image:
    return Image.new("RGBA", (16, 16), (0, 0, 0, alpha))


def palette_with_alpha() -> Image.Image:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("payload", "colour"),
    [
        pytest.param(saved(rgba(0)), (255, 255, 255), id="transparent is white"),
        pytest.param(saved(rgba(51)), (204, 204, 204), id="half transparent is mixed with white"),
        pytest.param(saved(rgba(255)), (0, 0, 0), id="opaque"),
        pytest.param(saved(Image.new("LA", (16, 16), (0, 0))), (255, 255, 255), id="grey and alpha"),
        pytest.param(saved(palette_with_alpha(), transparency=0), (255, 255, 255), id="palette and alpha"),
        pytest.param(saved(palette_with_alpha(), "GIF", transparency=0), (255, 255, 255), id="gif and alpha"),
        pytest.param(saved(Image.new("L", (16, 16), 0), transparency=0), (255, 255, 255), id="grey and a transparent grey"),
        pytest.param(saved(Image.new("L", (16, 16), 77)), (77, 77, 77), id="grey"),
        pytest.param(saved(Image.new("1", (16, 16), 1)), (255, 255, 255), id="two colours"),
        pytest.param(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF"), (255, 0, 0), id="cmyk"),
        pytest.param(saved(Image.fromarray(np.full((16, 16), 0x80FF, np.uint16))), (0x80,) * 3, id="grey of 16 bits"),
        pytest.param(saved(Image.new("I", (16, 16), 0x80FF), "TIFF"), (0x80,) * 3, id="integers within 16 bits"),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(decoder: Decoder, payload: bytes, colour: tuple[int, int, int]) -> None:
    pixels = decode(decoder, payload)
    assert not isinstance(pixels, str), pixels
    assert (pixels == colour).all(), pixels[0, 0]


def test_an_inverted_cmyk_jpeg_has_its_colours(decoder: Decoder) -> None:
    pixels = decode(decoder, saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert not isinstance(pixels, str)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 8


def test_of_an_animation_the_first_frame_counts(decoder: Decoder) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        payload = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        pixels = decode(decoder, payload)
        assert not isinstance(pixels, str)
        assert (pixels == (255, 0, 0)).all()


def png(width: int, height: int) -> bytes:
    """A valid start of a picture of that size, and none of its pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


NOISE = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
JPEG = saved(Image.fromarray(gradient(64, 64)), "JPEG")

REFUSED = [
    pytest.param(b"", "is empty", id="0 bytes"),
    pytest.param(b"<!DOCTYPE html><html>404</html>", "is an HTML page", id="HTML"),
    pytest.param(b"some words", "is not a picture that can be read", id="words"),
    pytest.param(bytes(1000), "is not a picture that can be read", id="zeros"),
    pytest.param(b"\x00\x00\x00\x1cftypheic" + bytes(99), "is a HEIC", id="HEIC"),
    pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture that can be read", id="SVG"),
    pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture that can be read", id="EPS"),
    pytest.param(JPEG[: len(JPEG) * 2 // 3], "is truncated", id="half a JPEG"),
    pytest.param(JPEG[:40], "is", id="the header of a JPEG"),
    pytest.param(NOISE[: len(NOISE) // 2], "is truncated", id="half a PNG"),
    pytest.param(png(50_000, 50_000), "is too large: 50000 × 50000 pixels", id="bomb"),
    pytest.param(png(2**31 - 1, 2**31 - 1), "is too large", id="huge bomb"),
    pytest.param(saved(Image.new("F", (16, 16), 0.5), "TIFF"), "has floating-point samples", id="floats"),
    pytest.param(saved(Image.new("I", (16, 16), 70_000), "TIFF"), "has samples of 32 bits", id="32 bits"),
]


@pytest.mark.parametrize(("payload", "reason"), REFUSED)
def test_what_is_no_picture_is_refused_with_a_reason(decoder: Decoder, payload: bytes, reason: str) -> None:
    said = decode(decoder, payload)
    assert isinstance(said, str)
    assert said.startswith(reason)
    assert not isinstance(decode(decoder, JPEG), str)  # and the next one is decoded


def test_a_picture_that_is_a_line_is_refused_before_it_is_stretched(decoder: Decoder) -> None:
    payload = saved(Image.new("RGB", (1, 20_000)))
    said = decode(decoder, payload, {"resize": 224, "crop": [224, 224], "interpolation": "bilinear"})
    assert said == "is too narrow to be resized: 1 × 20000 pixels"


def test_a_small_picture_is_padded_with_black(decoder: Decoder) -> None:
    pixels = decode(
        decoder, saved(Image.new("RGB", (2, 2), "white")), {"resize": None, "crop": [4, 6], "interpolation": None}
    )
    assert not isinstance(pixels, str)
    assert pixels[:, :, 0].tolist() == [[0] * 6, [0, 0, 255, 255, 0, 0], [0, 0, 255, 255, 0, 0], [0] * 6]


def test_flipped_bytes_end_no_worker(decoder: Decoder) -> None:
    rng = np.random.default_rng(0)
    images = [saved(Image.fromarray(gradient(40, 40)), kind) for kind in picture_worker.FORMATS]
    alive = set(decoder._alive)
    for payload in images * 12:
        broken = bytearray(payload)
        for place in rng.integers(0, len(broken), 6):
            broken[place] = rng.integers(256)
        decode(decoder, bytes(broken))
    assert decoder._alive >= alive


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_worker_that_is_lost_costs_nobody_else(how: signal.Signals) -> None:
    decoder = Decoder(1, seconds=0.5)
    try:
        assert not isinstance(decode(decoder, JPEG), str)
        (worker,) = decoder._alive
        os.kill(worker._process.pid, how)
        first = decode(decoder, JPEG)
        if how == signal.SIGSTOP:
            assert first == "took longer than 0.5 s to decode"
        else:
            assert not isinstance(first, str)  # on another worker
        assert not isinstance(decode(decoder, JPEG), str)
        assert worker._process.returncode is not None
    finally:
        decoder.close()


def test_a_picture_that_kills_every_worker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(1)
    ask = pictures._Worker.ask  # as if the picture crashed a codec

    def deadly(worker: Any, plan: bytes, payload: bytes, out: Any, seconds: float) -> str | None:
        if payload == b"deadly":
            worker._greet()
            worker._process.kill()
        return ask(worker, plan, payload, out, seconds)

    monkeypatch.setattr(pictures._Worker, "ask", deadly)
    try:
        assert decode(decoder, b"deadly") == "crashes its decoder"
        assert not isinstance(decode(decoder, JPEG), str)
    finally:
        decoder.close()


def test_closing_does_not_wait_for_a_picture_that_hangs() -> None:
    decoder = Decoder(1, seconds=60)
    assert not isinstance(decode(decoder, JPEG), str)
    (worker,) = decoder._alive
    os.kill(worker._process.pid, signal.SIGSTOP)
    futures = decoder.start([JPEG] * 3, WHOLE, np.empty((3, 16, 16, 3), np.uint8))
    begun = time.monotonic()
    decoder.close()
    assert time.monotonic() - begun < 10
    assert futures[0].result() == "was given up"
    assert futures[2].cancelled()


def in_a_program(body: str) -> subprocess.CompletedProcess[str]:
    start = "import os, sys, time\nimport numpy as np\nfrom cachestore.encoders import pictures\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", start + body], check=False, capture_output=True, text=True, timeout=60
    )


ONE = "pictures.shared().start([b'P6 1 1 255 abc'], {'resize': [1, 1]}, np.empty((1, 1, 1, 3), np.uint8))[0].result()"


def test_workers_end_with_their_program_and_import_no_torch() -> None:
    done = in_a_program(f"{ONE}\nprint(*(w._process.pid for w in pictures.shared()._alive), 'torch' in sys.modules)")
    assert done.returncode == 0, done.stderr
    pid, torch = done.stdout.split()
    assert torch == "False"
    assert not os.path.exists(f"/proc/{pid}")


def test_a_killed_program_leaves_no_worker() -> None:
    done = in_a_program(
        f"{ONE}\nprint(*(w._process.pid for w in pictures.shared()._alive), flush=True)\nos.kill(os.getpid(), 9)"
    )
    assert done.returncode == -9
    end = time.monotonic() + 20
    while os.path.exists(f"/proc/{done.stdout.strip()}"):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_forked_child_gets_workers_of_its_own() -> None:
    done = in_a_program(
        f"{ONE}\nmine = set(w._process.pid for w in pictures.shared()._alive)\nchild = os.fork()\n"
        f"answer = {ONE}\nassert answer is None\n"
        "if child == 0:\n    assert not mine & set(w._process.pid for w in pictures.shared()._alive)\n    sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\nprint('done')"
    )
    assert done.stdout == "done\n", done.stderr


def test_workers_start_whatever_the_program_is_and_say_so_when_they_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.sys, "executable", "/bin/true")
    decoder = Decoder(1)
    with pytest.raises(pictures.EncoderError, match="does not start"):
        decode(decoder, JPEG)
    decoder.close()


def test_the_same_bytes_give_the_same_pixels_on_any_worker(decoder: Decoder) -> None:
    out = np.empty((20, 16, 16, 3), np.uint8)
    for future in decoder.start([JPEG] * 20, WHOLE, out):
        future.result()
    assert (out == out[0]).all()

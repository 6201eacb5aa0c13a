"""A process that turns the bytes of picture files into pixels: what may hang, crash or eat memory does so here.

Run as a script by ``pictures``, so it imports Pillow and the standard library alone. On its standard input come
requests, on its standard output go answers, both as a length and that many bytes.

The rules (raise ``pictures.PICTURE_PREPROCESSING`` when one changes): the first frame, turned as its EXIF orientation
says; transparency over white; the high byte of samples of 16 bits; CMYK without its colour profile, as Pillow does it;
then RGB. Floating-point samples and integers of more than 16 bits are refused: nothing says what white is.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import struct
import sys
import warnings
from typing import Any, Final

from PIL import Image, UnidentifiedImageError

FORMATS: Final = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
REQUEST: Final = struct.Struct("<IQ")  # bytes of the plan (JSON), bytes of the picture
ANSWER: Final = struct.Struct("<?Q")  # whether there are pixels, bytes of the pixels or of the reason

_MEMORY: Final = 4 << 30
_TRANSPARENT: Final = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_OPAQUE: Final = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})
_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLE: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Refused(Exception):
    """The picture has no pixels to give; the message says why, as the end of a sentence that begins with its name."""


def pixels(payload: bytes, plan: Any) -> bytes:
    """RGB, height × width × 3 as ``plan`` says. Raises Refused."""
    return decode(payload, plan).tobytes()


def decode(payload: bytes, plan: Any) -> Image.Image:
    """The picture in RGB, of the size that ``plan`` says. Raises Refused."""
    if not payload:
        raise Refused("is empty (0 bytes)")
    Image.MAX_IMAGE_PIXELS = None
    image: Image.Image | None = None
    try:
        image = Image.open(io.BytesIO(payload), formats=FORMATS)
        if image.width * image.height > plan["max_pixels"]:
            raise Refused(f"is too large: {image.width} × {image.height} pixels are more than {plan['max_pixels']:,}")
        Image.MAX_IMAGE_PIXELS = plan["max_pixels"]  # of parts that say their own size, such as frames
        image.load()
        return fit(to_rgb(_upright(image)), plan)
    except Refused:
        raise
    except UnidentifiedImageError:
        raise Refused(_what_else(payload)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused(f"is too large: a part of it has more than {plan['max_pixels']:,} pixels") from None
    except MemoryError:
        raise Refused("needs more memory to decode than a picture may have") from None
    except Exception as error:  # Pillow's plugins raise whatever a broken file leads them to
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if "truncated" in reason.lower() or isinstance(error, EOFError):
            raise Refused(f"is truncated ({image.format if image else 'it ends in its header'})") from None
        raise Refused(f"cannot be decoded: {reason}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB. Raises Refused for samples without a defined white."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _high_byte(image)
    if image.mode in _TRANSPARENT or (image.mode in _OPAQUE and "transparency" in image.info):
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    if image.mode not in _OPAQUE:
        what = "floating-point samples" if image.mode == "F" else f"samples of mode {image.mode}"
        raise Refused(f"has {what}, which are not supported: save it with 8 or 16 bits")
    return image.convert("RGB")


def fit(image: Image.Image, plan: Any) -> Image.Image:
    """Resize and crop. ``resize`` is one number (the shorter side's length) or [height, width]; ``crop`` is [height, width]."""
    resize = plan.get("resize")
    if resize is not None:
        width, height = image.size
        if isinstance(resize, int):
            short, long = min(width, height), max(width, height)
            stretched = int(resize * long / short)
            size = (resize, stretched) if width <= height else (stretched, resize)
            if size[0] * size[1] > plan["max_pixels"]:
                raise Refused(f"is too narrow to be resized: {width} × {height} pixels")
        else:
            size = (resize[1], resize[0])
        if size != image.size:
            image = image.resize(size, _RESAMPLE[plan["interpolation"]])
    crop = plan.get("crop")
    return image if crop is None else _center_crop(image, crop[0], crop[1], plan.get("odd", "round"))


def _center_crop(image: Image.Image, height: int, width: int, odd: str) -> Image.Image:
    # a picture that is too small is padded with black; libraries disagree on where half a pixel goes
    if image.width < width or image.height < height:
        left, top = max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)
        larger = Image.new("RGB", (max(width, image.width), max(height, image.height)))
        larger.paste(image, (left, top))
        image = larger
        if image.size == (width, height):
            return image
    half_x, half_y = (image.width - width) / 2, (image.height - height) / 2
    left, top = (round(half_x), round(half_y)) if odd == "round" else (int(half_x), int(half_y))
    return image.crop((left, top, left + width, top + height))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever a broken EXIF leads the parser to; the pixels are fine
        return image
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _high_byte(image: Image.Image) -> Image.Image:
    low, high = image.getextrema()
    if low < 0 or high > 0xFFFF:  # type: ignore[operator]  # one band, so two numbers
        raise Refused("has samples of 32 bits, which are not supported: save it with 8 or 16 bits")
    wide = image.convert("I").tobytes()
    second = 1 if sys.byteorder == "little" else 2
    return Image.frombytes("L", image.size, wide[second::4])


def _what_else(payload: bytes) -> str:
    start = payload[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "is an HTML page, not a picture"
    if payload[4:8] == b"ftyp":
        return f"is a HEIC, AVIF or video file; pictures are read as {', '.join(FORMATS)}"
    return f"is not a picture that can be read ({', '.join(FORMATS)})"


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    _limit_memory()
    parent = os.getppid()
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints is no answer
    sink.write(ANSWER.pack(True, 0))
    sink.flush()
    while _wait(source, parent):
        head = source.read(REQUEST.size)
        if len(head) < REQUEST.size:
            return
        plan_size, size = REQUEST.unpack(head)
        plan = json.loads(source.read(plan_size))
        payload = source.read(size)
        if len(payload) < size:
            return
        try:
            answer, has_pixels = pixels(payload, plan), True
        except Refused as refusal:
            answer, has_pixels = str(refusal).encode(), False
        sink.write(ANSWER.pack(has_pixels, len(answer)))
        sink.write(answer)
        sink.flush()


def _wait(source: Any, parent: int) -> bool:
    """True when a request comes; False when whoever asks is gone, whose pipe a forked child of it may hold open."""
    while not select.select([source], [], [], 5.0)[0]:
        if os.getppid() != parent:
            return False
    return True


def _limit_memory() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    if soft == resource.RLIM_INFINITY or soft > limit:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        except (ValueError, OSError):  # systems that know the name and not the limit
            return


if __name__ == "__main__":
    _serve()

"""Image encoders against what one would write by hand: torchvision's and transformers' own models, picture by picture."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from numpy.typing import NDArray
from PIL import Image

from cachestore.encoders import (
    Encoded,
    image,
    image_files,
    image_model,
    open_encoder,
    precision,
    sha256_of_file,
    torchvision_models,
)
from cachestore.encoders.image_specs import table
from cachestore.errors import EncoderError
from tests.store import tiny_image_models, torchvision_table
from tests.store.tiny_image_models import SIDE, torch, transformers

KINDS = sorted(tiny_image_models.CONFIGS)


def picture(seed: int, height: int = 50, width: int = 70) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


PICTURES = [picture(0), picture(1, 90, 60), picture(2, 33, 33), picture(3, 51, 75), picture(4, 20, 31)]


def vectors(settings: Mapping[str, Any], payloads: Sequence[bytes] = PICTURES) -> NDArray[np.float32]:
    found = open_encoder({"precision": "float32", **settings}).encode(payloads)
    assert isinstance(found, Encoded)
    assert not found.refused
    return found.vectors


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {kind: tiny_image_models.save(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def by_hand(directory: Path, kind: str, pooling: str) -> NDArray[np.float32]:
    model = tiny_image_models.MODELS[kind].from_pretrained(directory).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    found = []
    for payload in PICTURES:
        inputs = processor(images=Image.open(io.BytesIO(payload)).convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            output = model(pixel_values=inputs["pixel_values"])
        hidden = output.last_hidden_state
        if pooling == "pooler":
            vector = output.pooler_output.flatten(1)
        elif pooling == "cls":
            vector = hidden[:, 0]
        else:
            vector = hidden.flatten(2).mean(2) if hidden.ndim == 4 else hidden.mean(1)
        found.append(vector[0].numpy())
    return np.stack(found)


@pytest.mark.parametrize("pooling", [None, "pooler", "cls", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_transformers_model_gives_what_it_gives_one_by_one(
    saved: Mapping[str, Path], kind: str, pooling: str | None
) -> None:
    settings = {"type": "auto_image_transformer", "pretrained_model_name_or_path": str(saved[kind])}
    if pooling == "cls" and kind == "convnext":
        with pytest.raises(image_model.EncoderError, match="no class token"):
            vectors({**settings, "reduce_output": pooling})
        return
    default = "cls" if kind == "vit" else "pooler"
    given = vectors({**settings, **({"reduce_output": pooling} if pooling else {})})
    assert (
        cosines(given, by_hand(saved[kind], kind, pooling or default)).min() > 0.9995
    )  # it resizes in another library
    assert np.ptp(given, axis=0).max() > 1e-3  # and they differ from each other


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_the_image_processor(saved: Mapping[str, Path], kind: str) -> None:
    spec = open_encoder(
        {"type": "auto_image_transformer", "pretrained_model_name_or_path": str(saved[kind]), "precision": "float32"}
    ).spec
    rules: Any = spec["picture"]
    processor = transformers.AutoImageProcessor.from_pretrained(saved[kind])
    height, width = rules["crop"] or rules["resize"]
    out = np.empty((len(PICTURES), height, width, 3), np.uint8)
    for future in image.pictures.shared().start(PICTURES, rules, out):
        assert future.result() is None
    ours = (out * rules["scale"] - rules["mean"]) / rules["std"]
    for row, payload in enumerate(PICTURES):
        theirs = processor(images=Image.open(io.BytesIO(payload)).convert("RGB"), return_tensors="np")["pixel_values"][
            0
        ]
        off = np.abs(ours[row] - theirs.transpose(1, 2, 0)) * rules["std"] / rules["scale"]
        assert off.max() <= 2.01, "of 255"  # rounding between two passes of a resize
        assert off.mean() < 0.2


PROCESSORS = ["ViT", "DeiT", "Bit", "CLIP", "Siglip", "ConvNext"]


@pytest.mark.parametrize("name", PROCESSORS)
def test_rules_of_a_processor_that_are_not_written_are_those_of_its_class(name: str, tmp_path: Path) -> None:
    processor = getattr(transformers, f"{name}ImageProcessor")()
    path = tmp_path / "preprocessor_config.json"
    bare = image_files._picture({"image_processor_type": f"{name}ImageProcessor"}, path)
    processor.save_pretrained(tmp_path)
    assert bare == image_files._picture(image_files.modules.load_json(path), path)


def test_two_poolings_take_one_forward(saved: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = [
        open_encoder(
            {
                "type": "auto_image_transformer",
                "pretrained_model_name_or_path": str(saved["dinov2"]),
                "precision": "float32",
                "reduce_output": pooling,
            }
        )
        for pooling in ("cls", "mean", "pooler")
    ]
    assert len({encoder.share for encoder in encoders}) == 1  # type: ignore[attr-defined]
    seen = []
    forward = image_model.ImageModule.forward
    monkeypatch.setattr(
        image_model.ImageModule,
        "forward",
        lambda self, pixels, poolings: seen.append(len(pixels)) or forward(self, pixels, poolings),
    )
    found = encoders[0].encode_for(encoders, [*PICTURES, PICTURES[0]])  # type: ignore[attr-defined]
    assert sum(seen) == len(PICTURES)  # equal pictures once
    for encoder, (given, _) in zip(encoders, found, strict=True):
        alone = encoder.encode(PICTURES)
        np.testing.assert_allclose(given[:-1], alone.vectors, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
        np.testing.assert_array_equal(given[-1], given[0])


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mobilenet") / "weights.safetensors"
    safetensors.torch.save_file(random_weights(torchvision_models.models.mobilenet_v3_small()), path)
    return path


def random_weights(model: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() and not name.endswith("running_var") and "relative_coords" not in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / max(1, tensor[0].numel())) ** 0.5)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def test_a_torchvision_model_gives_what_a_plain_loop_gives(mobilenet: Path) -> None:
    given = vectors({"type": "mobilenetv3", "weights_path": str(mobilenet)})
    model = torchvision_models.models.mobilenet_v3_small()
    model.load_state_dict(safetensors.torch.load_file(mobilenet))
    model.classifier[-1] = torch.nn.Identity()
    model.eval()
    transform = torchvision_models.models.MobileNet_V3_Small_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        expected = torch.cat(
            [model(transform(Image.open(io.BytesIO(payload)).convert("RGB"))[None]) for payload in PICTURES]
        )
    assert cosines(given, expected.numpy()).min() > 0.999999
    np.testing.assert_allclose(given, expected.numpy(), rtol=1e-3, atol=1e-4 * np.abs(given).max())


def test_a_vector_does_not_depend_on_its_batch(mobilenet: Path) -> None:
    settings = {"type": "mobilenetv3", "weights_path": str(mobilenet)}
    alone = np.concatenate([vectors(settings, [payload]) for payload in PICTURES])
    for other in (vectors(settings), vectors({**settings, "batch_size": 2}), vectors(settings, PICTURES[::-1])[::-1]):
        assert cosines(alone, other).min() > 0.99999


def test_pictures_that_are_none_are_refused_by_row_and_the_others_keep_their_vectors(mobilenet: Path) -> None:
    encoder = open_encoder(
        {"type": "mobilenetv3", "weights_path": str(mobilenet), "precision": "float32", "batch_size": 2}
    )
    payloads = [b"", PICTURES[0], b"<html>", b"<html>", PICTURES[1], PICTURES[2][:60], b"x" * 99]
    found = encoder.encode(payloads)
    assert isinstance(found, Encoded)
    assert set(found.refused) == {0, 2, 3, 5, 6}
    assert found.refused[0] == "is empty (0 bytes)"
    assert found.refused[3] == "is an HTML page, not a picture"
    expected = encoder.encode([PICTURES[0], PICTURES[1]])
    assert isinstance(expected, Encoded)
    assert cosines(found.vectors[[1, 4]], expected.vectors).min() > 0.99999
    nothing = encoder.encode([])
    assert isinstance(nothing, Encoded)
    assert nothing.vectors.shape == (0, encoder.dim)


def test_the_table_of_torchvision_is_that_of_the_installed_one() -> None:
    assert set(table()) == set(torchvision_models.models.list_models(module=torchvision_models.models))
    for name in ("mobilenet_v2", "vit_b_16", "swin_v2_t", "squeezenet1_0", "inception_v3", "maxvit_t", "resnet18"):
        assert table()[name] == torchvision_table.entry(name)


SMALL = [
    "alexnet", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t",
    "swin_v2_t", "convnext_tiny", "vit_b_32", "vgg11", "resnext50_32x4d", "wide_resnet50_2",
]  # fmt: skip
LARGE = sorted(set(table()) - set(SMALL))


def check_features(name: str, tmp_path: Path) -> None:
    entry = table()[name]
    crop = entry["weights"][entry["default"]]["crop"]
    options = (
        {"aux_logits": True, "transform_input": True, "init_weights": False}
        if name in ("googlenet", "inception_v3")
        else {}
    )
    options |= {"image_size": crop} if name.startswith("vit_") else {}
    model = torchvision_models.models.get_model(name, weights=None, **options).eval()
    torch.save(random_weights(model), tmp_path / "weights.pth")
    inputs: list[Any] = []
    model.get_submodule(entry["head"]).register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    pixels = torch.randn(1, 3, crop, crop, generator=torch.Generator().manual_seed(1))
    features = torchvision_models.load(name, entry["head"], crop, tmp_path / "weights.pth")
    with torch.inference_mode():
        model(pixels)
        given = features(pixels).flatten(1)
    expected = inputs[0].mean((2, 3)) if inputs[0].ndim == 4 else inputs[0]
    assert given.shape == (1, entry["dim"])
    assert np.ptp(given.numpy()) > 0
    # not to the bit: normalisation is part of the convolution before it
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=3e-4 * float(expected.abs().max()))
    assert cosines(given.numpy().astype(np.float64), expected.numpy().astype(np.float64)).min() > 0.999999


@pytest.mark.parametrize("name", SMALL)
def test_features_are_what_the_last_layer_of_a_torchvision_model_is_given(name: str, tmp_path: Path) -> None:
    check_features(name, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LARGE)
def test_features_of_the_large_ones_are_what_their_last_layer_is_given(name: str, tmp_path: Path) -> None:
    check_features(name, tmp_path)


def test_calibration_pictures_are_pictures_and_always_the_same() -> None:
    assert image.calibration() == image.calibration()
    out = np.empty((8, 240, 320, 3), np.uint8)
    plan = {"resize": None, "crop": [240, 320], "interpolation": None}
    assert all(f.result() is None for f in image.pictures.shared().start(image.calibration(), plan, out))
    assert len({row.tobytes() for row in out}) == 8


def test_weights_with_other_classes_serve_as_well(mobilenet: Path, tmp_path: Path) -> None:
    weights = safetensors.torch.load_file(mobilenet)
    weights["classifier.3.weight"], weights["classifier.3.bias"] = (
        weights["classifier.3.weight"][:7].clone(),
        torch.zeros(7),
    )
    torch.save({"state_dict": weights}, tmp_path / "mine.pth")
    given = vectors({"type": "mobilenetv3", "weights_path": str(tmp_path / "mine.pth")})
    np.testing.assert_array_equal(given, vectors({"type": "mobilenetv3", "weights_path": str(mobilenet)}))


def test_weights_that_are_of_another_model_or_no_weights_are_told(mobilenet: Path, tmp_path: Path) -> None:
    with pytest.raises(image_model.EncoderError, match="does not hold the weights of resnet18"):
        vectors({"type": "resnet", "model_variant": 18, "weights_path": str(mobilenet)})
    (tmp_path / "words.pth").write_bytes(b"no weights")
    with pytest.raises(image_model.EncoderError, match="cannot be read as weights"):
        vectors({"type": "mobilenetv3", "weights_path": str(tmp_path / "words.pth")})
    torch.save(print, tmp_path / "code.pth")
    with pytest.raises(image_model.EncoderError, match="cannot be read as weights"):
        vectors({"type": "mobilenetv3", "weights_path": str(tmp_path / "code.pth")})


def test_a_pooler_without_weights_is_told(tmp_path: Path) -> None:
    directory = tiny_image_models.save(tmp_path, "vit", add_pooling_layer=False)
    settings = {"type": "auto_image_transformer", "pretrained_model_name_or_path": str(directory)}
    assert vectors(settings).shape == (5, 16)
    with pytest.raises(image_model.EncoderError, match="no weights of a pooler"):
        vectors({**settings, "reduce_output": "pooler"})


def test_a_text_model_is_no_image_encoder(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path)
    with pytest.raises(image_model.EncoderError, match="'bert' are not supported yet as image encoders"):
        vectors({"type": "auto_image_transformer", "pretrained_model_name_or_path": str(tmp_path)})


def test_the_spec_of_a_moved_model_is_the_same(saved: Mapping[str, Path], tmp_path: Path) -> None:
    here = saved["clip"]
    for file in here.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    first, second = (
        open_encoder({"type": kind, "pretrained_model_name_or_path": str(place), "precision": "float32"}).spec
        for kind, place in (("clip", here), ("auto_image_transformer", tmp_path))
    )
    assert first == second
    assert first["weights"] == [sha256_of_file(here / "model.safetensors")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides for itself")
def test_auto_is_bfloat16_only_where_pictures_keep_their_direction(
    saved: Mapping[str, Path], mobilenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "_chosen", {})
    settings = {"type": "auto_image_transformer", "pretrained_model_name_or_path": str(saved["dinov2"])}
    assert open_encoder(settings).spec["precision"] == "bfloat16"
    encode = image.encode

    def blurred(spec: Any, place: Path, dim: int, payloads: Sequence[bytes]) -> Any:
        vectors, refused = encode({**spec, "precision": "float32"}, place, dim, payloads)
        return vectors + (0.05 * np.abs(vectors).max() if spec["precision"] == "bfloat16" else 0), refused

    monkeypatch.setattr(image, "encode", blurred)
    assert open_encoder({"type": "mobilenetv3", "weights_path": str(mobilenet)}).spec["precision"] == "float32"


def test_a_model_that_is_replaced_before_it_is_loaded_is_not_taken_for_the_one_that_was_opened(
    tmp_path: Path, mobilenet: Path
) -> None:
    directory = tiny_image_models.save(tmp_path / "vit", "vit")
    weights = Path(shutil.copyfile(mobilenet, tmp_path / "mine.safetensors"))
    moved = {name: tensor + 0.01 for name, tensor in safetensors.torch.load_file(mobilenet).items()}
    for settings, change in (
        (
            {"type": "auto_image_transformer", "pretrained_model_name_or_path": str(directory)},
            lambda: tiny_image_models.save(directory, "vit", seed=1),
        ),
        (
            {"type": "mobilenetv3", "weights_path": str(weights)},
            lambda: safetensors.torch.save_file(moved, weights),
        ),
    ):
        image.release()
        encoder = open_encoder({"precision": "float32", **settings})
        change()
        with pytest.raises(EncoderError, match="was changed while it was in use"):
            encoder.encode(PICTURES)
        assert vectors(settings).any()

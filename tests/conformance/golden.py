"""The fingerprints that stored vectors are named by: ``fingerprints.json``.

A change there orphans every vector of that encoder in every store, so it is made on purpose and told in the CHANGELOG:

    python -m tests.conformance.golden        # writes the file anew
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachestore import keys
from cachestore.encoders import open_encoder

FILE = Path(__file__).with_name("fingerprints.json")

_MODEL: Mapping[str, Any] = {
    "config.json": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 64},
    "tokenizer.json": {"version": "1.0"},
    "tokenizer_config.json": {"tokenizer_class": "BertTokenizerFast"},
    "model.safetensors": "weights",
}
_SENTENCES: Mapping[str, Any] = {
    **_MODEL,
    "modules.json": [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode_cls_token": True},
    "sentence_bert_config.json": {"max_seq_length": 48, "do_lower_case": True},
    "config_sentence_transformers.json": {"prompts": {"query": "query: "}, "default_prompt_name": None},
}
_TOWER: Mapping[str, Any] = {
    "config.json": {"model_type": "dinov2", "hidden_size": 16, "image_size": 32, "patch_size": 8},
    "preprocessor_config.json": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.25, 0.125],
        "image_std": [0.5, 0.5, 0.25],
        "resample": 3,
    },
    "model.safetensors": "weights",
}
# Written by hand, so that no library decides what they hold.
MODELS: Mapping[str, Mapping[str, Any]] = {
    "bert": _MODEL,
    "t5": {**_MODEL, "config.json": {"model_type": "t5", "d_model": 8, "n_positions": 512}},
    "sentences": _SENTENCES,
    "dinov2": _TOWER,
    "files": {"resnet18.safetensors": "weights"},
}

_EXACT = {"precision": "float32"}
_ALL_TEXT = {"reduce_output": "max", "max_sequence_length": 8, "normalize": True, "precision": "bfloat16"}
# name → settings; MODEL:x stands for the directory of a model
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "hashing": {"type": "hashing"},
    "hashing, all set": {
        "type": "hashing",
        "dim": 64,
        "ngram_range": [2, 3],
        "lowercase": False,
        "normalize": False,
        "dtype": "float32",
    },
    "minilm": {"type": "minilm", **_EXACT},
    "text": {"type": "bert", "pretrained_model_name_or_path": "MODEL:bert", **_EXACT},
    "text, all set": {
        "type": "auto_transformer",
        "pretrained_model_name_or_path": "MODEL:bert",
        **_ALL_TEXT,
        "dtype": "float32",
    },
    "text, a prompt and a layer": {
        "type": "bert",
        "pretrained_model_name_or_path": "MODEL:bert",
        "prompt": "query: ",
        "layer": 1,
        **_EXACT,
    },
    "text, two poolings": {
        "type": "bert",
        "pretrained_model_name_or_path": "MODEL:bert",
        "reduce_output": "cls_pooled+max",
        **_EXACT,
    },
    "text, relative positions": {"type": "t5", "pretrained_model_name_or_path": "MODEL:t5", **_EXACT},
    "sentence-transformers": {
        "type": "auto_transformer",
        "pretrained_model_name_or_path": "MODEL:sentences",
        **_EXACT,
    },
    "torchvision": {
        "type": "resnet",
        "model_variant": 18,
        "weights_path": "MODEL:files/resnet18.safetensors",
        **_EXACT,
    },
    "torchvision, all set": {
        "type": "torchvision",
        "model": "vit_b_16",
        "weights": "IMAGENET1K_SWAG_E2E_V1",
        "weights_path": "MODEL:files/resnet18.safetensors",
        "precision": "bfloat16",
        "dtype": "float32",
    },
    "image": {"type": "dinov2", "pretrained_model_name_or_path": "MODEL:dinov2", **_EXACT},
    "image, all set": {
        "type": "auto_image_transformer",
        "pretrained_model_name_or_path": "MODEL:dinov2",
        "reduce_output": "mean",
        "precision": "bfloat16",
        "dtype": "float32",
    },
    "imported": {"type": "imported", "spec": {"model": "api-1", "dim": 4}},
    "imported, nested": {
        "type": "imported",
        "spec": {
            "model": "api-1",
            "prompt": {"query": "find: ", "weights": [0.5, 1, None]},
            "dim": 4,
            "dtype": "float32",
        },
    },
}


def write_models(folder: Path) -> None:
    """Write the model directories that the settings name."""
    for name, files in MODELS.items():
        for path, content in files.items():
            target = folder / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content if isinstance(content, str) else json.dumps(content))


def placed(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings with the paths of the models in ``folder``."""
    return {
        key: value.replace("MODEL:", f"{folder}/") if isinstance(value, str) else value
        for key, value in settings.items()
    }


def settle(name: str, folder: Path) -> dict[str, Any]:
    """The spec that the settings of that name resolve to, its fingerprint and its dimension, as the file has them."""
    opened = open_encoder(placed(SETTINGS[name], folder))
    return {
        "settings": dict(SETTINGS[name]),
        "spec": opened.spec,
        "dim": opened.dim,
        "fingerprint": keys.fingerprint(opened.spec).hex(),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        write_models(Path(made))
        golden = {name: settle(name, Path(made)) for name in SETTINGS}
    FILE.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

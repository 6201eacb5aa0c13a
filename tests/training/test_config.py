"""Configs: Ludwig's forms read with its defaults, and every fault of a wrong one in a single report."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cachestore import yaml_source
from cachestore.encoders.spec import HashingSettings, TextSettings
from cachestore.errors import ConfigError, UsageError
from trainer import ludwig
from trainer.combiners import ConcatCombiner
from trainer.config import load_config
from trainer.faults import tags
from trainer.schema.inputs import CategoryInput, InputFeature, NumberInput, TextInput
from trainer.schema.outputs import BinaryOutput, CategoryOutput, NumberOutput
from trainer.schema.preparation import FixedSplit, RandomSplit
from trainer.schema.training import SGD, AdamW, Scheduler

TEXT: dict[str, Any] = {"name": "review", "type": "text", "encoder": {"type": "hashing", "dim": 64}}
DECAYS = get_args(get_args(Scheduler.model_fields["decay"].annotation)[0])
TARGET: dict[str, Any] = {"name": "sentiment", "type": "category"}


def mapping(**sections: Any) -> dict[str, Any]:
    return {"input_features": [TEXT], "output_features": [TARGET], **copy.deepcopy(sections)}


def faults(config: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(config, overrides)
    first, *lines = str(error.value).splitlines()
    if not lines:
        assert first.startswith("the config: ")
        return [first.removeprefix("the config: ")]
    assert first == f"the config has {len(lines)} faults:"
    assert len(lines) > 1
    return lines


def fault(config: Any, *overrides: str) -> str:
    (line,) = faults(config, *overrides)
    return line


# what is read


def test_defaults_are_ludwigs() -> None:
    config = load_config(mapping())
    assert config.trainer.epochs == 100
    assert config.trainer.learning_rate == 0.001
    assert config.trainer.batch_size == "auto"
    assert config.trainer.early_stop == 5
    assert config.trainer.optimizer.type == "adam"
    assert config.preprocessing.split is None
    assert config.random_seed == 42
    assert config.combiner.type == "concat"
    text, target = config.input_features[0], config.output_features[0]
    assert isinstance(text, TextInput)
    assert text.column == "review"
    assert text.preprocessing.missing_value_strategy == "indicator"
    assert isinstance(target, CategoryOutput)
    assert target.preprocessing.missing_value_strategy == "drop_row"


def test_short_forms() -> None:
    config = load_config(
        {
            "input_features": [
                {"name": "review", "type": "text", "encoder": "minilm", "preprocessing": None},
                {"name": "kind", "type": "category", "encoder": "onehot", "column": "Kind"},
            ],
            "output_features": [TARGET, {"name": "stars", "type": "number", "loss": "huber", "decoder": "regressor"}],
            "combiner": "concat",
            "trainer": {"optimizer": "adamw", "learning_rate_scheduler": None},
            "preprocessing": {"split": "random"},
            "backend": "local",
        }
    )
    text, kind = config.input_features
    assert isinstance(text, TextInput)
    assert isinstance(text.encoder, TextSettings)
    assert text.encoder.type == "minilm"
    assert isinstance(kind, CategoryInput)
    assert (kind.column, kind.encoder.type) == ("Kind", "onehot")
    assert isinstance(config.output_features[1], NumberOutput)
    assert config.output_features[1].loss.type == "huber"
    assert config.trainer.optimizer == AdamW()
    assert config.preprocessing.split == RandomSplit()


def test_a_section_without_its_type_has_ludwigs_default_type() -> None:
    config = load_config(
        mapping(
            input_features=[{"name": "k", "type": "category", "encoder": {"embedding_size": 7}}],
            trainer={"optimizer": {"weight_decay": 0.1}},
            preprocessing={"split": {"probabilities": [0.8, 0.1, 0.1]}},
            output_features=[{"name": "n", "type": "number", "loss": {"weight": 2}}],
        )
    )
    assert config.trainer.optimizer.type == "adam"
    assert config.preprocessing.split == RandomSplit(probabilities=(0.8, 0.1, 0.1))
    kind, output = config.input_features[0], config.output_features[0]
    assert isinstance(kind, CategoryInput)
    assert kind.encoder.type == "dense"
    assert isinstance(output, NumberOutput)
    assert (output.loss.type, output.loss.weight) == ("mean_squared_error", 2)


def test_a_frozen_cached_encoder_as_ludwig_writes_it() -> None:
    written = {
        "name": "review",
        "type": "text",
        "encoder": {
            "type": "bert",
            "trainable": False,
            "adapter": None,
            "use_pretrained": True,
            "reduce_output": "avg",
        },
        "preprocessing": {"cache_encoder_embeddings": True},
    }
    text = load_config(mapping(input_features=[written])).input_features[0]
    assert isinstance(text, TextInput)
    assert isinstance(text.encoder, TextSettings)
    assert text.encoder.reduce_output == "mean"


def test_the_mapping_given_is_not_changed() -> None:
    given_ = mapping(trainer={"optimizer": "sgd"}, defaults={"number": {"preprocessing": {"fill_value": 1}}})
    before = copy.deepcopy(given_)
    load_config(given_, ["trainer.optimizer.momentum=0.5"])
    assert given_ == before


def test_a_path_may_name_a_model(tmp_path: Path) -> None:
    written = {**TEXT, "encoder": {"type": "auto_transformer", "pretrained_model_name_or_path": tmp_path}}
    text = load_config(mapping(input_features=[written])).input_features[0]
    assert isinstance(text, TextInput)
    assert isinstance(text.encoder, TextSettings)
    assert text.encoder.pretrained_model_name_or_path == str(tmp_path)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_config(mapping()).trainer.epochs = 3  # type: ignore[misc]


# defaults


def test_defaults_lie_under_the_features_of_their_type() -> None:
    config = load_config(
        {
            "defaults": {
                "text": {
                    "encoder": {"type": "hashing", "dim": 32},
                    "preprocessing": {"missing_value_strategy": "drop_row"},
                },
                "number": {"preprocessing": {"normalization": "minmax", "fill_value": 3}, "loss": "huber"},
                "category": {"encoder": "onehot", "decoder": {"num_fc_layers": 1}},
            },
            "input_features": [
                {"name": "a", "type": "text"},
                {"name": "b", "type": "text", "encoder": {"dim": 16}},
                {"name": "c", "type": "text", "encoder": {"type": "bert"}},
                {"name": "n", "type": "number", "preprocessing": {"fill_value": 4.5}},
                {"name": "k", "type": "category"},
            ],
            "output_features": [
                {"name": "y", "type": "category", "decoder": {"fc_output_size": 9}},
                {"name": "z", "type": "number"},
            ],
        }
    )
    a, b, c, n, k = config.input_features
    assert isinstance(a, TextInput)
    assert isinstance(b, TextInput)
    assert isinstance(c, TextInput)
    assert a.encoder == HashingSettings(dim=32)
    assert a.preprocessing.missing_value_strategy == "drop_row"
    assert b.encoder == HashingSettings(dim=16)
    assert c.encoder == TextSettings(type="bert")  # another type takes nothing from the default
    assert isinstance(n, NumberInput)
    assert (n.preprocessing.normalization, n.preprocessing.fill_value) == ("minmax", 4.5)
    assert isinstance(k, CategoryInput)
    assert k.encoder.type == "onehot"
    y, z = config.output_features
    assert isinstance(y, CategoryOutput)
    assert (y.decoder.num_fc_layers, y.decoder.fc_output_size) == (1, 9)
    assert isinstance(z, NumberOutput)
    assert z.loss.type == "huber"
    assert z.preprocessing.normalization is None  # as in Ludwig, preprocessing defaults are those of inputs


def test_faults_in_defaults_are_reported_there_once() -> None:
    lines = faults(
        {
            "defaults": {
                "text": {"encoder": {"type": "hashing", "dimm": 32}, "decoder": {}},
                "number": {"preprocessing": {"normalization": "zscoer"}},
                "category": {"loss": {"weigth": 1}},
                "binary": {"preprocessing": 3},
                "nmber": {},
                "audio": {},
            },
            "input_features": [{"name": "a", "type": "text"}, {"name": "b", "type": "text"}],
            "output_features": [{"name": "z", "type": "number"}],
        }
    )
    assert sorted(line.partition(": ")[0] for line in lines) == [
        "defaults.audio",
        "defaults.binary.preprocessing",
        "defaults.category.loss.weigth",
        "defaults.nmber",
        "defaults.number.preprocessing.normalization",
        "defaults.text.decoder",
        "defaults.text.encoder.dimm",
    ]


def test_defaults_that_are_no_mapping() -> None:
    assert fault(mapping(defaults=[1])) == "defaults: must be a mapping of feature types, not a list of 1"
    assert fault(mapping(defaults={"text": "bert"})).startswith("defaults.text: must be a mapping of encoder, preproc")


# faults


def test_all_faults_stand_in_one_report() -> None:
    lines = faults(
        {
            "input_feature": [],
            "input_features": [
                {"name": "review", "type": "text", "encoder": {"type": "bert", "reduce_output": "maen", "lenght": 3}},
                {"name": "age", "type": "numbr"},
                {"name": "kind", "type": "category", "preprocessing": {"most_common": 0}},
                {"type": "number"},
                "title",
            ],
            "output_features": [{"name": "y", "type": "category", "decoder": {"num_fc_layer": 2}}],
            "combiner": {"type": "concat", "norm": "lyer", "fc_layers": [{"output_size": 8}, {"dropuot": 0.1}]},
            "trainer": {"learning_rte": 1, "epochs": "3", "optimizer": {"type": "adam", "beta": [0.9, 0.99]}},
            "preprocessing": {"split": {"type": "hash"}},
            "random_seed": 1.5,
        }
    )
    assert sorted(line.partition(": ")[0] for line in lines) == [
        "combiner.fc_layers[1].dropuot",
        "combiner.norm",
        "input_feature",
        "input_features.age.type",
        "input_features.kind.preprocessing.most_common",
        "input_features.review.encoder.lenght",
        "input_features.review.encoder.reduce_output",
        "input_features[3].name",
        "input_features[4]",
        "output_features.y.decoder.num_fc_layer",
        "preprocessing.split.column",
        "random_seed",
        "trainer.epochs",
        "trainer.learning_rte",
        "trainer.optimizer.beta",
    ]
    assert "trainer.learning_rte: unknown key; did you mean 'learning_rate'?" in lines
    assert "combiner.fc_layers[1].dropuot: unknown key; did you mean 'dropout'?" in lines
    assert "trainer.epochs: must be a whole number, not '3'" in lines
    assert "preprocessing.split.column: is missing" in lines


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"trainer": 3}, "trainer: must be a mapping, not 3"),
        ({"trainer": {"epochs": 0}}, "trainer.epochs: must be greater than 0, not 0"),
        ({"trainer": {"epochs": True}}, "trainer.epochs: must be a whole number, not true"),
        ({"trainer": {"batch_size": "big"}}, "trainer.batch_size: must be a whole number or 'auto', not 'big'"),
        ({"trainer": {"batch_size": -1}}, "trainer.batch_size: must be greater than 0 or 'auto', not -1"),
        (
            {"trainer": {"learning_rate": 0}},
            "trainer.learning_rate: must be greater than 0 or 'auto' or 'range_test', not 0",
        ),
        ({"trainer": {"early_stop": 0}}, "trainer.early_stop: must be greater than 0 or -1, not 0"),
        ({"trainer": {"use_mixed_precision": 1}}, "trainer.use_mixed_precision: must be true or false, not 1"),
        (
            {"trainer": {"learning_rate_scheduler": {"warmup_fraction": 1.5}}},
            "trainer.learning_rate_scheduler.warmup_fraction: must be at most 1, not 1.5",
        ),
        (
            {"trainer": {"learning_rate_scheduler": {"warmup_fraction": -0.1}}},
            "trainer.learning_rate_scheduler.warmup_fraction: must be at least 0, not -0.1",
        ),
        (
            {"trainer": {"learning_rate_scheduler": {"decay": "liner"}}},
            "trainer.learning_rate_scheduler.decay: there is no 'liner'; did you mean 'linear'? "
            f"(choose one of {', '.join(DECAYS)}, null)",
        ),
        (
            {"trainer": {"optimizer": {"betas": [0.9]}}},
            "trainer.optimizer.betas: must be a list of 2, not a list of 1",
        ),
        (
            {"trainer": {"optimizer": {"betas": [0.9, 1.0]}}},
            "trainer.optimizer.betas[1]: must be less than 1, not 1.0",
        ),
        (
            {"trainer": {"optimizer": {"type": "sgd", "nesterov": True}}},
            "trainer.optimizer: nesterov: true needs a momentum greater than 0 and no dampening",
        ),
        (
            {"preprocessing": {"split": {"probabilities": [0.5, 0.1, 0.2]}}},
            "preprocessing.split.probabilities: the shares of train, validation and test must sum to 1, train above 0",
        ),
        (
            {"preprocessing": {"split": {"probabilities": [0, 0.5, 0.5]}}},
            "preprocessing.split.probabilities: the shares of train, validation and test must sum to 1, train above 0",
        ),
        (
            {"preprocessing": {"split": {"probabilities": [1.0]}}},
            "preprocessing.split.probabilities: must be a list of 3, not a list of 1",
        ),
        (
            {"preprocessing": {"splt": 1}},
            "preprocessing.splt: unknown key; did you mean 'split'?",
        ),
        ({"random_seed": -1}, "random_seed: must be at least 0, not -1"),
        ({"combiner": {"zzz": 1}}, None),
        (
            {"input_features": None},
            "input_features: is missing; a config needs at least one, a mapping with a name and a type",
        ),
        (
            {"output_features": []},
            "output_features: is missing; a config needs at least one, a mapping with a name and a type",
        ),
        (
            {"input_features": {"review": "text"}},
            "input_features: must be a list of features, each a mapping with a name and a type, not a mapping",
        ),
        (
            {"input_features": [{"name": "a"}]},
            f"input_features.a.type: is missing; choose one of {', '.join(tags(InputFeature))}",
        ),
        ({"input_features": [{"name": "", "type": "number"}]}, "input_features[0].name: must be not empty, not ''"),
        ({"input_features": [{"name": 7, "type": "number"}]}, "input_features[0].name: must be text, not 7"),
    ],
    ids=str,
)
def test_wording(sections: dict[str, Any], line: str | None) -> None:
    if line is None:
        line = f"combiner.zzz: unknown key; the keys here are {', '.join(ConcatCombiner.model_fields)}"
    assert fault(mapping(**sections)) == line


def test_a_text_feature_without_an_encoder_names_the_choices() -> None:
    line = fault(mapping(input_features=[{"name": "review", "type": "text"}]))
    assert line.startswith(
        "input_features.review.encoder: is missing; a text feature needs one: encoder: minilm, or one of "
    )
    assert "hashing" in line
    assert "auto_transformer" in line


def test_typos_of_trainable_are_seen() -> None:
    written = {**TEXT, "encoder": {"type": "bert", "trainble": True}}
    assert fault(mapping(input_features=[written])).endswith("encoder.trainble: unknown key; did you mean 'trainable'?")


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"combiner": {"type": "tabnet"}}, "combiner.type"),
        ({"combiner": {"batch_ensemble": True}}, "combiner.batch_ensemble"),
        ({"trainer": {"compile": True}}, "trainer.compile"),
        ({"trainer": {"optimizer": {"type": "paged_adam"}}}, "trainer.optimizer.type"),
        ({"trainer": {"learning_rate_scheduler": {"decay": "wsd"}}}, "trainer.learning_rate_scheduler.decay"),
        ({"input_features": [{"name": "i", "type": "audio"}]}, "input_features.i.type"),
        ({"input_features": [{**TEXT, "encoder": "parallel_cnn"}]}, "input_features.review.encoder.type"),
        ({"input_features": [{**TEXT, "tied": "x"}]}, "input_features.review.tied"),
        ({"input_features": [{"name": "n", "type": "number", "encoder": "ple"}]}, "input_features.n.encoder"),
        ({"input_features": [{"name": "k", "type": "category", "encoder": "target"}]}, "input_features.k.encoder.type"),
        ({"output_features": [{"name": "s", "type": "sequence"}]}, "output_features.s.type"),
        ({"output_features": [{**TARGET, "loss": "corn"}]}, "output_features.sentiment.loss.type"),
        ({"output_features": [{**TARGET, "dependencies": ["x"]}]}, "output_features.sentiment.dependencies"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_ludwig_has_and_this_has_not_is_no_unknown(sections: dict[str, Any], place: str) -> None:
    line = fault(mapping(**sections))
    assert line.startswith(place)
    assert "not supported yet" in line


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"input_features": [{"name": "n", "type": "binary", "normalization": "zscore"}]},
            "input_features.n.normalization: belongs under preprocessing",
        ),
        ({"trainer": {"decay": "linear"}}, "trainer.decay: belongs under learning_rate_scheduler"),
    ],
)
def test_a_key_in_the_wrong_place_is_shown_its_own(sections: dict[str, Any], line: str) -> None:
    assert fault(mapping(**sections)) == line


@pytest.mark.parametrize(
    ("side", "written", "place"),
    [
        ("input_features", {"type": "vector", "encoder": {"fc_layers": []}}, "encoder.fc_layers"),
        ("input_features", {"type": "set", "encoder": {"representation": "dense"}}, "encoder.representation"),
        ("input_features", {"type": "binary", "preprocessing": {"fill_value": 1}}, "preprocessing.fill_value"),
        ("output_features", {"type": "vector", "vector_size": 2}, "vector_size"),
        ("output_features", {"type": "vector", "softmax": False}, "softmax"),
        ("output_features", {"type": "vector", "decoder": {"multiplier": 1.0}}, "decoder.multiplier"),
        ("output_features", {"type": "number", "decoder": {"output_size": 1}}, "decoder.output_size"),
        (
            "output_features",
            {"type": "category", "preprocessing": {"computed_fill_value": "a"}},
            "preprocessing.computed_fill_value",
        ),
    ],
)
def test_keys_of_ludwig_are_no_typos(side: str, written: dict[str, Any], place: str) -> None:
    line = fault(mapping(**{side: [{"name": "x", **written}]}))
    assert line.startswith(f"{side}.x.{place}: ")
    assert "unknown key" not in line


def test_the_table_of_what_is_lacking_has_nothing_that_is_there() -> None:
    config = load_config(mapping()).resolved()
    assert not ludwig.KEYS[""].keys() & config.keys()
    assert not ludwig.KEYS["trainer"].keys() & config["trainer"].keys()
    assert not ludwig.KEYS["combiner"].keys() & config["combiner"].keys()
    scheduler = config["trainer"]["learning_rate_scheduler"]
    assert not ludwig.KEYS["trainer.learning_rate_scheduler"].keys() & scheduler.keys()
    output = config["output_features"][0]
    assert not ludwig.KEYS["output_features.decoder"].keys() & output["decoder"].keys()
    assert not ludwig.KEYS["output_features.loss"].keys() & output["loss"].keys()


# what sections say together


def test_names_are_unique() -> None:
    number = {"name": "n", "type": "number"}
    lines = faults(mapping(input_features=[TEXT, number, number]))
    assert lines == ["input_features.n: two features have this name; rename one and set its column"]


def test_a_feature_is_no_input_and_output() -> None:
    line = fault(mapping(input_features=[TEXT, {"name": "sentiment", "type": "category"}]))
    assert line.startswith("output_features.sentiment: is an input as well")


def test_no_output_has_the_name_under_which_metrics_have_all_of_them() -> None:
    combined = {"name": "combined", "type": "number"}
    assert fault(mapping(output_features=[combined])).startswith("output_features.combined: metrics have")
    load_config(mapping(output_features=[TARGET, {**combined, "name": "other", "column": "combined"}]))
    load_config(mapping(input_features=[TEXT, combined]))


def test_an_input_reads_no_column_of_an_output() -> None:
    leak = {"name": "other", "column": "sentiment", "type": "category"}
    line = fault(mapping(input_features=[TEXT, leak]))
    assert line.startswith("input_features.other.column: 'sentiment' is the column of the output 'sentiment'")


def test_two_features_may_share_an_input_column() -> None:
    config = load_config(
        mapping(input_features=[TEXT, {**TEXT, "name": "again", "column": "review", "encoder": "minilm"}])
    )
    assert [feature.column for feature in config.input_features] == ["review", "review"]


OUTPUTS = [TARGET, {"name": "urgent", "type": "binary"}, {"name": "topic", "type": "category"}]


@pytest.mark.parametrize(
    ("trainer", "start"),
    [
        (
            {"validation_field": "sentimnet"},
            "trainer.validation_field: there is no output 'sentimnet'; did you mean 'sentiment'?",
        ),
        (
            {"validation_field": "review"},
            "trainer.validation_field: there is no output 'review'; choose one of sentiment, urgent",
        ),
        (
            {"validation_field": "urgent", "validation_metric": "hits_at_k"},
            "trainer.validation_metric: the output 'urgent' has no 'hits_at_k'; choose one of loss, roc_auc",
        ),
        ({"validation_metric": "r2"}, "trainer.validation_metric: no output has 'r2'"),
        (
            {"validation_metric": "roc_acu"},
            "trainer.validation_metric: no output has 'roc_acu'; did you mean 'roc_auc'?",
        ),
        ({"validation_metric": "accuracy"}, "trainer.validation_metric: sentiment, urgent, topic all have 'accuracy'"),
    ],
)
def test_validation_must_fit_the_outputs(trainer: dict[str, Any], start: str) -> None:
    assert fault(mapping(output_features=OUTPUTS, trainer=trainer)).startswith(start)


@pytest.mark.parametrize(
    ("trainer", "field"),
    [
        ({}, None),
        ({"validation_metric": "loss"}, "sentiment"),
        ({"validation_metric": "roc_auc"}, "urgent"),
        ({"validation_field": "topic", "validation_metric": "accuracy"}, "topic"),
    ],
)
def test_the_output_that_alone_has_the_metric_is_validated_on(trainer: dict[str, Any], field: str | None) -> None:
    assert load_config(mapping(output_features=OUTPUTS, trainer=trainer)).trainer.validation_field == field


def test_stratify_needs_few_values() -> None:
    split = {"split": {"type": "stratify", "column": "age"}}
    age = {"name": "age", "type": "number"}
    assert "is a number feature" in fault(mapping(input_features=[TEXT, age], preprocessing=split))
    assert load_config(mapping(preprocessing=split)).preprocessing.split is not None  # looked at when data is read
    assert load_config(mapping(preprocessing={"split": {"type": "stratify", "column": "sentiment"}}))


def test_a_constant_needs_a_value() -> None:
    strategy = {"preprocessing": {"missing_value_strategy": "fill_with_const"}}
    lines = faults(mapping(input_features=[{**TEXT, **strategy}], output_features=[{**TARGET, **strategy}]))
    assert [line.partition(": ")[0] for line in lines] == [
        "input_features.review.preprocessing",
        "output_features.sentiment.preprocessing",
    ]
    assert all("needs a fill_value" in line for line in lines)


# overrides


def test_overrides() -> None:
    config = load_config(
        mapping(output_features=[TARGET, {"name": "a.b", "type": "binary"}], combiner="concat"),
        [
            "trainer.epochs=3",
            "trainer.learning_rate=1e-2",
            "trainer.optimizer={type: sgd, momentum: 0.9}",
            "trainer.optimizer.nesterov=true",
            "input_features.review.encoder.dim=16",
            "output_features.0.top_k=2",
            "output_features.a.b.threshold=0.25",
            "combiner.num_fc_layers=1",
            "preprocessing.split.type=fixed",
            "random_seed=7",
        ],
    )
    assert config.trainer.epochs == 3
    assert config.trainer.learning_rate == 0.01
    assert config.trainer.optimizer == SGD(momentum=0.9, nesterov=True)
    text, target, urgent = config.input_features[0], *config.output_features
    assert isinstance(text, TextInput)
    assert text.encoder == HashingSettings(dim=16)
    assert isinstance(target, CategoryOutput)
    assert target.top_k == 2
    assert isinstance(urgent, BinaryOutput)
    assert urgent.threshold == 0.25
    assert config.combiner.num_fc_layers == 1
    assert config.preprocessing.split == FixedSplit()
    assert config.random_seed == 7


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.epochs", "write it as path=value"),
        ("=3", "write it as path=value"),
        ("trainer..epochs=3", "write it as path=value"),
        ("input_features.reviw.encoder.dim=3", "input_features has no 'reviw'; did you mean 'review'?"),
        ("input_features.9.encoder.dim=3", "input_features has no '9'; it has review"),
        ("input_features.review=3", "name a setting of it"),
        ("random_seed.x=3", "random_seed is 1 and has no 'x'"),
        ("trainer.epochs=[1", "trainer.epochs=, line 2: did not find expected"),
        ("trainer.epoch=3", "trainer.epoch: unknown key; did you mean 'epochs'?"),
    ],
)
def test_overrides_that_lead_nowhere(override: str, says: str) -> None:
    assert says in fault(mapping(random_seed=1), override)


def test_an_override_of_a_feature_lies_over_the_defaults() -> None:
    config = load_config(
        mapping(
            input_features=[{"name": "review", "type": "text"}],
            defaults={"text": {"encoder": {"type": "hashing", "dim": 64}}},
        ),
        ["input_features.review.encoder.lowercase=false"],
    )
    text = config.input_features[0]
    assert isinstance(text, TextInput)
    assert text.encoder == HashingSettings(dim=64, lowercase=False)


# there and back

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
ENCODERS = st.sampled_from(
    ["hashing", "minilm", "bert", {"type": "hashing", "ngram_range": [1, 3], "dtype": "float32"}]
)
SPLITS = st.sampled_from(
    [
        None,
        "random",
        "fixed",
        {"type": "hash", "column": "1e-3"},
        {"type": "random", "probabilities": [0.5, 0.25, 0.25]},
    ]
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(NAMES, min_size=5, max_size=5, unique=True))
    fill = draw(st.floats(allow_nan=False, allow_infinity=False))
    return {
        "input_features": [
            {"name": names[0], "type": "text", "encoder": draw(ENCODERS)},
            {"name": names[1], "type": "number", "preprocessing": {"fill_value": fill}},
            {"name": names[2], "type": "category", "preprocessing": {"fill_value": draw(NAMES)}},
        ],
        "output_features": [
            {"name": names[3], "type": "category", "loss": {"class_weights": {draw(NAMES): 2.5}}},
            {"name": names[4], "type": draw(st.sampled_from(["binary", "number"]))},
        ],
        "trainer": {
            "learning_rate": draw(st.floats(1e-300, 1e300)),
            "optimizer": draw(st.sampled_from(["adam", "adamw", {"type": "sgd", "momentum": 0.9}])),
        },
        "preprocessing": {"split": draw(SPLITS)},
        "combiner": {"fc_layers": [{"output_size": draw(st.integers(1, 9))}]},
    }


@given(configs())
def test_a_resolved_config_reads_back_to_an_equal_one(written: dict[str, Any]) -> None:
    config = load_config(written)
    plain = config.resolved()
    assert load_config(plain) == config
    text = yaml_source.dump(plain)
    assert yaml_source.parse(text, "config.yaml") == plain
    assert yaml.safe_load(text)["input_features"][0]["name"] == plain["input_features"][0]["name"]


# files


def test_a_file_is_named_in_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("input_features: []\noutput_features:\n- {name: y, type: category}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: input_features: ")
    path.write_text(yaml_source.dump(mapping()), encoding="utf-8")
    assert load_config(str(path)) == load_config(mapping())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.yaml: the config cannot be read: no such file"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(UsageError, match="is a directory"):
        load_config(tmp_path)


def test_values_that_yaml_has_not_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.epochs: a set cannot stand in a config"):
        load_config(mapping(trainer={"epochs": {3}}))
    with pytest.raises(ConfigError, match=r"trainer: the key 3 must be text"):
        load_config(mapping(trainer={3: 4}))

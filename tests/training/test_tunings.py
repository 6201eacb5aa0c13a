"""What users write of encoders that are trained: modes, adapters, backends, and every mistake of these told with its place."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from cachestore.errors import ConfigError
from trainer import load_config
from trainer.schema import Config
from trainer.schema.adapters import TYPES, LoRA, unsupported
from trainer.schema.backend import BackendTrainer, RayBackend, RayTrainer
from trainer.schema.inputs import TextInput


def written(encoder: Any, **sections: Any) -> dict[str, Any]:
    feature = {"name": "review", "type": "text", "encoder": encoder}
    return {"input_features": [feature], "output_features": [{"name": "y", "type": "category"}], **sections}


def bert(**settings: Any) -> dict[str, Any]:
    return {"type": "bert", **settings}


def faults(config: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    return str(caught.value).removeprefix("the config: ").splitlines()


def review(config: Config) -> TextInput:
    (feature,) = config.input_features
    assert isinstance(feature, TextInput)
    return feature


@pytest.mark.parametrize(
    ("encoder", "preprocessing", "mode", "live"),
    [
        ("bert", {}, "frozen", False),
        (bert(trainable=False), {"cache_encoder_embeddings": True}, "frozen", False),
        (bert(trainable=False), {"cache_encoder_embeddings": False}, "frozen", True),
        (bert(trainable=True), {}, "full", True),
        (bert(trainable=True), {"cache_encoder_embeddings": False}, "full", True),
        (bert(trainable_layers=2), {}, "full", True),
        (bert(adapter="lora"), {}, "adapter", True),
        (bert(trainable=True, adapter="lora"), {}, "adapter", True),
        (bert(trainable=True, adapter=None), {}, "full", True),
        (bert(trainable=None, adapter={"type": "ia3"}), {}, "adapter", True),
    ],
    ids=str,
)
def test_the_mode_follows_from_what_is_written(encoder: Any, preprocessing: Any, mode: str, live: bool) -> None:
    config = written(encoder)
    config["input_features"][0]["preprocessing"] = preprocessing
    loaded = load_config(config)
    assert (review(loaded).tuning.mode, review(loaded).live) == (mode, live)
    assert load_config(loaded.resolved()) == loaded
    assert pickle.loads(pickle.dumps(loaded)) == loaded
    by_defaults = load_config(
        {
            **config,
            "input_features": [{"name": "review", "type": "text", "preprocessing": preprocessing}],
            "defaults": {"text": {"encoder": encoder}},
        }
    )
    assert by_defaults == loaded


@pytest.mark.parametrize(
    ("encoder", "preprocessing", "place", "why"),
    [
        (bert(trainable=False, adapter="lora"), {}, "encoder", "trainable: false keeps the adapter from being trained"),
        (
            bert(trainable_layers=1, adapter="lora"),
            {},
            "encoder",
            "choose the adapter's layers with layers_to_transform",
        ),
        (bert(trainable_layers=1, trainable=False), {}, "encoder", "trainable: false leaves no layers to train"),
        (bert(trainable_layers=0), {}, "encoder.trainable_layers", "must be greater than 0 or null, not 0"),
        (bert(trainable="yes"), {}, "encoder.trainable", "must be true or false or null, not 'yes'"),
        (
            bert(trainable=True),
            {"cache_encoder_embeddings": True},
            "preprocessing.cache_encoder_embeddings",
            "true: the encoder is trained (trainable), so its vectors change at every step",
        ),
        (
            bert(adapter="lora"),
            {"cache_encoder_embeddings": True},
            "preprocessing.cache_encoder_embeddings",
            "true: the encoder is trained (adapter)",
        ),
        (bert(trainable=True, precision="bfloat16"), {}, "encoder.precision", "set trainer.use_mixed_precision"),
        ({"type": "hashing", "trainable": True}, {}, "encoder.trainable", "hashing has no weights to train"),
        ({"type": "hashing", "adapter": "lora"}, {}, "encoder.adapter", "hashing has no weights to train"),
        (
            "hashing",
            {"cache_encoder_embeddings": False},
            "preprocessing.cache_encoder_embeddings",
            "false: vectors of hashing always go through the store",
        ),
        (
            bert(adapter="lroa"),
            {},
            "encoder.adapter.type",
            "there is no 'lroa'; did you mean 'lora'? (choose one of lora",
        ),
        (
            bert(adapter="prefix_tuning"),
            {},
            "encoder.adapter.type",
            "'prefix_tuning' is not supported yet; choose one of",
        ),
        (bert(adapter={"type": "lora", "rr": 4}), {}, "encoder.adapter.rr", "unknown key"),
        (bert(adapter={"type": "lora", "r": 0}), {}, "encoder.adapter.r", "must be greater than 0, not 0"),
        (bert(adapter={"r": 8}), {}, "encoder.adapter.type", "is missing; choose one of lora, adalora"),
        (bert(adapter={"type": "adalora", "r": 8}), {}, "encoder.adapter.r", "adalora has init_r and target_r instead"),
        (bert(adapter={"type": "adalora", "target_r": 20}), {}, "encoder.adapter", "target_r must be at most init_r"),
        (
            bert(adapter={"type": "adalora", "tinit": 5, "tfinal": 5, "total_step": 10}),
            {},
            "encoder.adapter",
            "tinit and tfinal leave no steps of total_step",
        ),
        (
            bert(adapter={"type": "oft", "r": 4, "oft_block_size": 8}),
            {},
            "encoder.adapter",
            "set one of r and oft_block_size",
        ),
        (
            bert(adapter={"type": "lora", "alpha": 8, "lora_alpha": 8}),
            {},
            "encoder.adapter.lora_alpha",
            "is PEFT's name of alpha, and that is here as well",
        ),
        (bert(adapter={"type": "lora", "init_lora_weights": "pisa"}), {}, "encoder.adapter.init_lora_weights", "pissa"),
        (
            bert(adapter={"type": "lora", "postprocessor": {"merge_adapter_into_base_model": True}}),
            {},
            "encoder.adapter.postprocessor",
            "the encoder with the adapter merged into it",
        ),
        (bert(adapter=["lora"]), {}, "encoder.adapter", "must be a mapping or null, not a list of 1"),
        (bert(trainble=True), {}, "encoder.trainble", "unknown key; did you mean 'trainable'?"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told_with_its_place(encoder: Any, preprocessing: Any, place: str, why: str) -> None:
    config = written(encoder)
    config["input_features"][0]["preprocessing"] = preprocessing
    (line,) = faults(config)
    assert line.startswith(f"input_features.review.{place}: "), line
    assert why in line


def test_an_adapter_of_texts_is_not_for_pictures() -> None:
    feature = {"name": "picture", "type": "image", "encoder": {"type": "resnet", "adapter": "prompt_tuning"}}
    (line,) = faults({"input_features": [feature], "output_features": [{"name": "y", "type": "category"}]})
    assert line == "input_features.picture.encoder.adapter: prompt_tuning is for texts; choose another"


def test_a_section_called_tuning_is_no_key() -> None:
    config = written("bert")
    config["input_features"][0]["tuning"] = {"trainable": True}
    (line,) = faults(config)
    assert (
        line == "input_features.review.tuning: unknown key; trainable, adapter and trainable_layers stand under encoder"
    )
    config["input_features"][0] = {"name": "review", "type": "text", "encoder": "bert", "zzz": 1}
    (line,) = faults(config)
    assert "tuning" not in line


@pytest.mark.parametrize("kind", TYPES)
def test_every_adapter_may_be_written_as_its_type_alone(kind: str) -> None:
    adapter = review(load_config(written(bert(adapter=kind)))).tuning.adapter
    assert adapter is not None
    assert adapter.type == kind
    assert review(load_config(written(bert(adapter={"type": kind})))).tuning.adapter == adapter


def test_alpha_is_twice_the_rank_and_pefts_names_are_read() -> None:
    short = review(load_config(written(bert(adapter={"type": "lora", "r": 16})))).tuning.adapter
    assert short == LoRA(r=16, alpha=32)
    peft = {"type": "lora", "r": 16, "lora_alpha": 4, "lora_dropout": 0.2, "bias": "all", "target_modules": ["query"]}
    given = review(load_config(written(bert(adapter=peft)))).tuning.adapter
    assert given == LoRA(r=16, alpha=4, dropout=0.2, bias_type="all", target_modules=("query",))
    assert given is not None
    assert given.type == "lora"


def test_an_override_reaches_into_an_adapter_in_its_short_form() -> None:
    config = load_config(written(bert(adapter="lora")), ["input_features.review.encoder.adapter.r=2"])
    assert review(config).tuning.adapter == LoRA(r=2)


def test_a_trained_encoder_has_defaults_of_its_own_for_rate_and_clipping() -> None:
    frozen, trained = load_config(written("bert")).trainer, load_config(written(bert(trainable=True))).trainer
    assert (frozen.learning_rate, frozen.gradient_clipping.clipglobalnorm) == (0.001, None)
    assert (trained.learning_rate, trained.gradient_clipping.clipglobalnorm) == ("auto", 1.0)
    said = {"learning_rate": 0.002, "gradient_clipping": {"clipvalue": 0.5}}
    told = load_config(written(bert(trainable=True), trainer=said)).trainer
    assert (told.learning_rate, told.gradient_clipping.clipglobalnorm) == (0.002, None)
    for nothing in (None, {"clipglobalnorm": None}):
        none = load_config(written(bert(trainable=True), trainer={"gradient_clipping": nothing})).trainer
        assert none.gradient_clipping.clipglobalnorm is None
    assert load_config(written(bert(trainable=True), trainer={"optimizer": "sgd"})).trainer.learning_rate == 0.001


@pytest.mark.parametrize(
    ("sections", "trainer"),
    [
        ({"trainer": {"strategy": "ddp", "num_workers": 2}}, BackendTrainer(strategy="ddp", num_workers=2)),
        ({"backend": {"trainer": {"num_workers": 2}}}, BackendTrainer(strategy="ddp", num_workers=2)),
        (
            {"backend": {"trainer": {"strategy": "fsdp", "cpu_offload": True}}},
            BackendTrainer(strategy="fsdp", cpu_offload=True),
        ),
        ({"backend": "local"}, BackendTrainer()),
        ({"backend": {"type": "local", "trainer": None}}, BackendTrainer()),
        ({"backend": {"type": "local", "trainer": {"strategy": "local"}}}, BackendTrainer()),
        ({"backend": {"type": "ray", "trainer": {"strategy": {"type": "fsdp"}}}}, RayTrainer(strategy="fsdp")),
        ({"backend": "ray", "trainer": {"strategy": "fsdp"}}, RayTrainer(strategy="fsdp")),
        (
            {"backend": {"type": "ray", "trainer": {"use_gpu": False, "resources_per_worker": {"CPU": 2}}}},
            RayTrainer(use_gpu=False, resources_per_worker={"CPU": 2}),
        ),
    ],
    ids=str,
)
def test_strategies_as_they_are_written(sections: dict[str, Any], trainer: BackendTrainer) -> None:
    config = load_config(written(bert(trainable=True), **sections))
    assert config.backend.trainer == trainer
    assert isinstance(config.backend, RayBackend) == isinstance(trainer, RayTrainer)
    assert not config.notices
    assert load_config(config.resolved()) == config


@pytest.mark.parametrize(
    "sections",
    [
        {"backend": "horovod"},
        {"backend": {"type": "horovod"}},
        {"backend": {"type": "ray", "trainer": {"strategy": "horovod", "num_workers": 2}}},
        {"backend": {"trainer": {"strategy": {"type": "horovod"}}}},
        {"trainer": {"strategy": "horovod"}},
    ],
    ids=str,
)
def test_horovod_runs_as_ddp_and_says_so_once(sections: dict[str, Any]) -> None:
    before = copy.deepcopy(sections)
    config = load_config(written(bert(trainable=True), **sections), ["trainer.epochs=3"])
    assert sections == before
    assert config.backend.trainer.strategy == "ddp"
    (notice,) = config.notices
    assert notice.startswith("strategy: horovod runs as ddp")
    assert "2.1" in notice
    assert not load_config(config.resolved()).notices  # said once


@pytest.mark.parametrize(
    ("sections", "lines"),
    [
        (
            {"backend": {"trainer": {"strategy": "fspd"}}},
            ["backend.trainer.strategy: there is no 'fspd'; did you mean 'fsdp'? (choose one of ddp, fsdp, null)"],
        ),
        ({"trainer": {"strategy": "fspd"}}, ["trainer.strategy: there is no 'fspd'; did you mean 'fsdp'?"]),
        ({"backend": "deepspeed"}, ["backend.type: 'deepspeed' is not supported: fsdp shards parameters"]),
        (
            {
                "backend": {
                    "type": "ray",
                    "trainer": {"strategy": {"type": "deepspeed", "zero_optimization": {"stage": 3}}},
                }
            },
            [
                "backend.trainer.strategy: 'deepspeed' is not supported: fsdp shards parameters, gradients and optimizer state"
            ],
        ),
        (
            {"backend": {"type": "ray", "trainer": {"num_worker": 2}}},
            ["backend.trainer.num_worker: unknown key; did you mean"],
        ),
        (
            {"backend": {"trainer": {"num_workers": 0}}},
            ["backend.trainer.num_workers: must be greater than 0 or 'auto', not 0"],
        ),
        (
            {"backend": {"type": "ray", "trainer": {"use_gpu": False, "resources_per_worker": {"GPU": 1}}}},
            ["backend.trainer: resources_per_worker asks for GPUs that use_gpu: false does without"],
        ),
        ({"backend": {"trainer": {"cpu_offload": True}}}, ["backend.trainer: cpu_offload needs strategy: fsdp"]),
        (
            {"backend": {"trainer": {"strategy": "ddp"}}, "trainer": {"strategy": "fsdp"}},
            ["trainer.strategy: is written as"],
        ),
        ({"backend": {"type": "rya"}}, ["backend.type: there is no 'rya'; did you mean 'ray'?"]),
        (
            {"backend": {"type": "local", "trainer": {"use_gpu": True}}},
            ["backend.trainer.use_gpu: is for backend: ray"],
        ),
        (
            {"trainer": {"layers_to_freeze_regex": "layer.(0"}},
            ["trainer.layers_to_freeze_regex: 'layer.(0' is no regular"],
        ),
        ({"trainer": {"learning_rate_scaling": "squared"}}, ["trainer.learning_rate_scaling: there is no 'squared'"]),
        (
            {"trainer": {"optimizer": "lbfgs"}},
            ["trainer.optimizer: lbfgs sees all rows at every step, and the encoder of 'review'"],
        ),
        (
            {"trainer": {"optimizer": "muon", "strategy": "fsdp"}},
            ["trainer.optimizer: muon works on whole matrices, which fsdp shards"],
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_strategy_or_the_training_is_told(sections: dict[str, Any], lines: list[str]) -> None:
    found = faults(written(bert(trainable=True), **sections))
    assert len(found) == len(lines)
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(start), line


def test_settings_that_no_encoder_would_heed_are_refused() -> None:
    trainer = {"enable_gradient_checkpointing": True, "layers_to_freeze_regex": "layer", "encoder_learning_rate": 1e-5}
    lines = faults(written("bert", trainer=trainer))[1:]
    assert [line.partition(": ")[0] for line in lines] == [f"trainer.{key}" for key in trainer]
    assert load_config(written(bert(adapter="lora"), trainer=trainer)).trainer.encoder_learning_rate == 1e-5


def test_adalora_under_fsdp_is_refused() -> None:
    (line,) = faults(written(bert(adapter="adalora"), trainer={"strategy": "fsdp"}))
    assert line.startswith(
        "input_features.review.encoder.adapter: adalora cuts ranks by whole matrices, which fsdp shards"
    )


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_layers_left_out_by_chance_are_refused_under_fsdp(kind: str) -> None:
    adapter = {"type": kind, "module_dropout": 0.1}
    (line,) = faults(written(bert(adapter=adapter), trainer={"strategy": "fsdp"}))
    assert line.startswith("input_features.review.encoder.adapter.module_dropout: leaves out layers by chance")
    load_config(written(bert(adapter={**adapter, "module_dropout": 0.0}), trainer={"strategy": "fsdp"}))
    load_config(written(bert(adapter=adapter), trainer={"strategy": "ddp"}))


def test_the_capability_table() -> None:
    everything = [
        unsupported("llama", kind, strategy, True, "text") for kind in TYPES for strategy in (None, "ddp", "fsdp")
    ]
    assert sum(why is not None for why in everything) == 1  # adalora under fsdp
    why = unsupported("bert", "adaption_prompt", None, False, "text")
    assert why is not None
    assert why.startswith(
        "adaption_prompt is for models of type llama, mistral, gpt2; bert models take lora, adalora, ia3"
    )
    for kind in ("loha", "lokr", "oft"):
        why = unsupported("gpt2", kind, "ddp", False, "text")
        assert why is not None
        assert "gpt2 models under ddp take lora, adalora, ia3, vera, adaption_prompt, prompt_tuning" in why
        assert unsupported("opt", kind, None, False, "text") is None
    assert unsupported("resnet50", "prompt_tuning", None, False, "image") is not None
    assert unsupported("resnet50", None, None, True, "image") is not None
    assert unsupported("vit", None, "fsdp", True, "image") is None

"""What a Ludwig config may hold and this version lacks: refused with a word of help, not as a typo.

``KEYS``: section → key → what the fault says. ``VALUES``: path of a setting → the values Ludwig has beyond ours.
Sections and paths leave out feature names: ``input_features.encoder`` is that of any input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_LATER: Final = "not supported yet; leave it out"
_NO_LLM: Final = "not supported yet; a text model is the encoder of a text feature, see input_features.…encoder"
_FLOW: Final = "not supported yet; leave it out: every output reads the combiner's vector"
_UNDER_ENCODER: Final = "belongs under encoder"
_IN_TRANSFORM: Final = "belongs to the encoder, which knows what its weights were trained on; leave it out"
_IN_ENCODER: Final = "not supported yet; the encoder's own tokenizer cuts the text"
_FROM_DATA: Final = "follows from the data; leave it out"
_FROM_MODEL: Final = "follows from the encoder; leave it out"
_NO_FILL: Final = "features of this type have none; choose another missing_value_strategy"

KEYS: Final[Mapping[str, Mapping[str, str]]] = {
    "": {
        "hyperopt": "is for cachestore sweep, which trains every setting; to train one, leave it out",
        "model_type": "not supported yet; leave it out: every model is encoders, combiner, decoders (Ludwig's ecd)",
        "ludwig_version": "has no meaning here; leave it out",
        **dict.fromkeys(("base_model", "prompt", "adapter", "quantization", "generation", "model_parameters"), _NO_LLM),
    },
    "trainer": {
        "steps_per_checkpoint": "not supported yet; leave it out: a run is evaluated once an epoch",
        "checkpoints_per_epoch": "not supported yet; leave it out: a run is evaluated once an epoch",
        "decay": "belongs under learning_rate_scheduler",
        "warmup_fraction": "belongs under learning_rate_scheduler",
        "random_seed": "stands at the top of the config",
        "type": "not supported yet; leave it out: there is one trainer",
        "compile": _LATER,
        "bucketing_field": "not needed; leave it out: texts of about one length are batched together, see bucket_by_length",
        **dict.fromkeys(
            (
                "eval_steps",
                "can_tune",
                "enable_profiling",
                "increase_batch_size_eval_metric",
                "increase_batch_size_eval_split",
                "increase_batch_size_on_plateau",
                "increase_batch_size_on_plateau_patience",
                "increase_batch_size_on_plateau_rate",
                "profiler",
                "should_shuffle",
                "skip_all_evaluation",
            ),
            _LATER,
        ),
    },
    "trainer.learning_rate_scheduler": dict.fromkeys(
        (
            "t_0",
            "t_mult",
        ),
        "not supported yet; leave it out: cosine is half a period over the whole run, without restarts",
    ),
    "preprocessing": {
        "global_max_sequence_length": "not supported yet; set max_sequence_length under encoder",
    },
    "input_features": {
        **dict.fromkeys(
            (
                "adapter",
                "embedding_size",
                "max_sequence_length",
                "pretrained_model_name_or_path",
                "reduce_output",
                "trainable",
                "trainable_layers",
            ),
            _UNDER_ENCODER,
        ),
        "tuning": "unknown key; trainable, adapter and trainable_layers stand under encoder",
        "encoder": "not supported yet; leave it out: a value of this type goes to the combiner as it is",
        "cache_encoder_embeddings": "belongs under preprocessing",
        "missing_value_strategy": "belongs under preprocessing",
        "normalization": "belongs under preprocessing",
        "augmentation": "not supported yet; leave it out: a picture is seen as it is",
        "tied": "not supported yet; two features with equal encoders already share what is stored",
        "proc_column": _LATER,
    },
    "input_features.preprocessing": {
        "max_sequence_length": "belongs under encoder",
        "computed_fill_value": _FROM_DATA,
        "computed_outlier_fill_value": _FROM_DATA,
        "fill_value": _NO_FILL,
        "cache_encoder_embeddings": "only encoders of text and images are cached; leave it out",
        **dict.fromkeys(
            (
                "channel_class_map",
                "height",
                "infer_image_dimensions",
                "infer_image_max_height",
                "infer_image_max_width",
                "infer_image_num_channels",
                "infer_image_num_classes",
                "infer_image_sample_size",
                "num_channels",
                "num_classes",
                "requires_equal_dimensions",
                "resize_method",
                "scaling",
                "standardize_image",
                "width",
            ),
            _IN_TRANSFORM,
        ),
        "in_memory": "not supported yet; leave it out: pictures are read once, and their vectors stored",
        "num_processes": _LATER,
        **dict.fromkeys(
            (
                "compute_idf",
                "lowercase",
                "most_common",
                "ngram_size",
                "padding",
                "padding_symbol",
                "pretrained_model_name_or_path",
                "prompt",
                "sequence_length",
                "tokenizer",
                "unknown_symbol",
                "vocab_file",
            ),
            _IN_ENCODER,
        ),
    },
    "input_features.encoder": dict.fromkeys(
        (
            *("activation", "bias_initializer", "dropout", "embedding_initializer", "embeddings_on_cpu"),
            *("embeddings_trainable", "fc_layers", "input_size", "norm", "norm_params", "num_fc_layers", "output_size"),
            *("pretrained_embeddings", "representation", "skip", "use_bias", "vocab", "weights_initializer"),
        ),
        _LATER,
    ),
    "output_features": {
        "encoder": "an output has a decoder",
        "dependencies": _FLOW,
        "reduce_input": _FLOW,
        "reduce_dependencies": _FLOW,
        "default_validation_metric": "not supported yet; use trainer.validation_field and trainer.validation_metric",
        "num_fc_layers": "belongs under decoder",
        "vector_size": "belongs under preprocessing",
        "input_size": _FROM_DATA,
        "num_classes": _FROM_DATA,
        "softmax": _LATER,
        "proc_column": _LATER,
    },
    "output_features.preprocessing": {
        **dict.fromkeys(
            ("lowercase", "most_common", "vocab", "prompt", "fallback_label", "outlier_strategy", "outlier_threshold"),
            _LATER,
        ),
        **dict.fromkeys(("computed_fill_value", "computed_outlier_fill_value"), _FROM_DATA),
        "fill_value": _NO_FILL,
        "cache_encoder_embeddings": "only inputs have encoders; leave it out",
    },
    "output_features.decoder": {
        "clip": "stands at the output feature",
        "output_size": "follows from the data; fc_output_size is that of the layers before",
        **dict.fromkeys(
            (
                "activation",
                "bias_initializer",
                "fc_bias_initializer",
                "fc_norm_params",
                "fc_weights_initializer",
                "input_size",
                "mc_dropout_samples",
                "multiplier",
                "num_classes",
                "weights_initializer",
            ),
            _LATER,
        ),
    },
    "output_features.loss": {
        **dict.fromkeys(("class_similarities", "class_similarities_temperature"), _LATER),
        "robust_lambda": "only rescales the loss, which moves no optimum; leave it out, and for noisy labels use "
        "confidence_penalty, or label_smoothing of softmax_cross_entropy",
    },
    "combiner": dict.fromkeys(
        (
            "batch_ensemble",
            "batch_ensemble_size",
            "bias_initializer",
            "norm_params",
            "num_batch_ensemble_members",
            "weights_initializer",
        ),
        _LATER,
    ),
    "input_features.tuning.adapter": {
        "r": "adalora has init_r and target_r instead, and other types without r have no rank; leave it out",
        "loraplus_lr_ratio": "not supported yet; leave it out, or set trainer.encoder_learning_rate",
        "postprocessor": "leave it out: a run has the adapter, and the encoder with the adapter merged into it",
        "pretrained_adapter_weights": _LATER,
        "modules_to_save": "not supported yet; leave it out: combiner and decoders are trained in any case",
        "fan_in_fan_out": "follows from the model; leave it out",
        **dict.fromkeys(
            ("task_type", "inference_mode", "base_model_name_or_path", "revision", "peft_type"), _FROM_MODEL
        ),
        **dict.fromkeys(
            (
                *("loftq_config", "eva_config", "corda_config", "lora_bias", "layer_replication", "target_parameters"),
                *("megatron_config", "megatron_core", "trainable_token_indices", "runtime_config"),
            ),
            _LATER,
        ),
    },
    "backend": {
        **dict.fromkeys(("loader", "processor", "preprocessor_kwargs"), "has no meaning here; leave it out"),
        **dict.fromkeys(
            ("cache_dir", "cache_format", "cache_credentials"),
            "has no meaning here; leave it out: vectors are kept in the store, see --store",
        ),
    },
    "backend.trainer": {
        **dict.fromkeys(("use_gpu", "resources_per_worker"), "is for backend: ray; leave it out"),
        **dict.fromkeys(("timeout_s", "max_retries", "nics"), "has no meaning here; leave it out"),
    },
}

VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "input_features.type": ("bag", "sequence", "audio", "timeseries", "h3"),
    "output_features.type": ("text", "sequence", "timeseries", "image", "category_distribution"),
    "input_features.encoder.type": ("passthrough", "target", "hash"),
    "input_features.preprocessing.missing_value_strategy": (
        *("fill_with_const", "fill_with_mode", "fill_with_mean", "bfill", "ffill", "drop_row"),
    ),
    "output_features.preprocessing.missing_value_strategy": ("fill_with_const",),
    "output_features.decoder.type": ("tagger", "generator", "passthrough"),
    "output_features.loss.type": (
        *("corn", "entmax", "entmax15_loss", "sparsemax", "entropic_open_set", "objectosphere", "nt_xent"),
    ),
    "combiner.type": (
        *("sequence", "sequence_concat", "tabnet", "tabtransformer", "cross_attention", "perceiver", "hypernetwork"),
        "tabpfn_v2",
    ),
    "combiner.norm": ("ghost",),
    "trainer.optimizer.type": (
        "schedule_free_adamw",
        *("sgd_8bit", "adam_8bit", "adamw_8bit", "paged_adam", "paged_adamw", "adagrad_8bit", "rmsprop_8bit"),
        *("lion", "lion_8bit", "lars", "lamb", "ftrl"),
    ),
    "trainer.learning_rate_scheduler.decay": ("wsd",),
    "input_features.tuning.adapter.type": (
        *("prefix_tuning", "p_tuning", "fourierft", "boft", "tinylora", "c3a", "hra", "waveft", "ln_tuning", "vblora"),
    ),
}

_DEEPSPEED: Final = (
    "is not supported: fsdp shards parameters, gradients and optimizer state, as DeepSpeed's ZeRO stage 3 does"
)
INSTEAD: Final[Mapping[tuple[str, str], str]] = {
    ("backend.type", "deepspeed"): f"{_DEEPSPEED}; set backend.trainer.strategy: fsdp",
    ("backend.trainer.strategy", "deepspeed"): _DEEPSPEED,
    ("backend.trainer.strategy", "accelerate"): "is not supported: it runs ddp, or fsdp, which are built in",
    ("backend.type", "dask"): "is a processor, not where training runs",
    ("backend.type", "modin"): "is a processor, not where training runs",
}
"""Path of a setting and a value of Ludwig's → what to say of it, before the choices."""

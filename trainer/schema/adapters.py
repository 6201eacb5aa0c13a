"""Adapters of an encoder that is trained: one frozen class per type of PEFT's, with Ludwig's names and defaults, and what they support.

Settings alone: nothing here imports peft. PEFT's own names (``PEFT_NAMES``) are read as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias, get_args

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from cachestore.encoders.image_specs import table
from trainer.frozen import Frozen
from trainer.layers import DropoutRate

Modules: TypeAlias = tuple[str, ...] | str | None
"""Names of modules, the end of each, or one regular expression of whole names, or ``all-linear``; None: PEFT's of the model's type."""
Layers: TypeAlias = tuple[NonNegativeInt, ...] | NonNegativeInt | None
Pattern: TypeAlias = dict[str, PositiveInt]
"""Of modules, by a regular expression of their names."""
Kind: TypeAlias = Literal["text", "image"]

_INITS: Final = ("gaussian", "orthogonal", "olora", "pissa")


def _init(value: str) -> str:
    if value not in _INITS and not re.fullmatch(r"pissa_niter_[1-9]\d*", value):
        raise ValueError(f"must be true, false, {', '.join(_INITS)} or pissa_niter_16, not {value!r}")
    return value


class LoRA(Frozen):
    """Hu et al. 2021: W + alpha / r · BA, or with ``use_rslora`` alpha / √r (Kalajdzievski 2023); ``use_dora``: Liu et al. 2024."""

    type: Literal["lora"] = "lora"
    r: PositiveInt = 8
    alpha: PositiveInt = Field(default_factory=lambda data: 2 * data.get("r", 8))
    dropout: DropoutRate = 0.05
    target_modules: Modules = None
    exclude_modules: Modules = None
    bias_type: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Annotated[str, AfterValidator(_init)] = True
    layers_to_transform: Layers = None
    layers_pattern: tuple[str, ...] | str | None = None
    rank_pattern: Pattern = Field(default_factory=dict)
    alpha_pattern: Pattern = Field(default_factory=dict)


class AdaLoRA(Frozen):
    """Zhang et al. 2023: ranks begin at ``init_r`` and are cut to ``target_r`` on average, between the first ``tinit`` and the last
    ``tfinal`` of ``total_step`` optimizer steps, every ``delta_t``. ``total_step`` None: as many as the run has.
    """

    type: Literal["adalora"] = "adalora"
    target_r: PositiveInt = 8
    init_r: PositiveInt = 12
    tinit: NonNegativeInt = 0
    tfinal: NonNegativeInt = 0
    delta_t: PositiveInt = 1
    beta1: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.85
    orth_reg_weight: PositiveFloat = 0.5
    total_step: PositiveInt | None = None
    alpha: PositiveInt = 16
    dropout: DropoutRate = 0.05
    target_modules: Modules = None
    exclude_modules: Modules = None
    bias_type: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool = True
    layers_to_transform: Layers = None
    layers_pattern: tuple[str, ...] | str | None = None

    @model_validator(mode="after")
    def _ranks_are_cut(self) -> AdaLoRA:
        if self.target_r > self.init_r:
            raise PydanticCustomError("ranks", "target_r must be at most init_r, from which ranks are cut")
        if self.total_step is not None and self.tinit + self.tfinal >= self.total_step:
            raise PydanticCustomError(
                "schedule", "tinit and tfinal leave no steps of total_step in which ranks are cut"
            )
        return self


class IA3(Frozen):
    """Liu et al. 2022: learnt factors of the outputs of ``target_modules``, of the inputs where they are ``feedforward_modules``."""

    type: Literal["ia3"] = "ia3"
    target_modules: Modules = None
    exclude_modules: Modules = None
    feedforward_modules: Modules = None
    init_ia3_weights: bool = True


class VeRA(Frozen):
    """Kopiczko et al. 2024: random projections that all layers share, and learnt vectors that scale them."""

    type: Literal["vera"] = "vera"
    r: PositiveInt = 256
    dropout: DropoutRate = 0.0
    d_initial: float = 0.1
    projection_prng_key: NonNegativeInt = 0
    save_projection: bool = True
    target_modules: Modules = None
    bias_type: Literal["none", "all", "vera_only"] = "none"
    init_weights: bool = True
    layers_to_transform: Layers = None
    layers_pattern: tuple[str, ...] | str | None = None


class AdaptionPrompt(Frozen):
    """Zhang et al. 2023, LLaMA-Adapter: ``adapter_len`` learnt tokens before the attention of the top ``adapter_layers`` layers."""

    type: Literal["adaption_prompt"] = "adaption_prompt"
    adapter_len: PositiveInt = 4
    adapter_layers: PositiveInt = 1
    target_modules: str | None = None


class LoHa(Frozen):
    """Hyeon-Woo et al. 2022: the Hadamard product of two low-rank products."""

    type: Literal["loha"] = "loha"
    r: PositiveInt = 8
    alpha: PositiveInt = 8
    rank_dropout: DropoutRate = 0.0
    module_dropout: DropoutRate = 0.0
    use_effective_conv2d: bool = False
    target_modules: Modules = None
    exclude_modules: Modules = None
    init_weights: bool = True
    layers_to_transform: Layers = None
    layers_pattern: tuple[str, ...] | str | None = None
    rank_pattern: Pattern = Field(default_factory=dict)
    alpha_pattern: Pattern = Field(default_factory=dict)


class LoKr(Frozen):
    """Yeh et al. 2024: a Kronecker product, one factor of which may be of low rank."""

    type: Literal["lokr"] = "lokr"
    r: PositiveInt = 8
    alpha: PositiveInt = 8
    rank_dropout: DropoutRate = 0.0
    module_dropout: DropoutRate = 0.0
    use_effective_conv2d: bool = False
    decompose_both: bool = False
    decompose_factor: PositiveInt | Literal[-1] = -1
    rank_dropout_scale: bool = False
    target_modules: Modules = None
    exclude_modules: Modules = None
    init_weights: bool | Literal["lycoris"] = True
    layers_to_transform: Layers = None
    layers_pattern: tuple[str, ...] | str | None = None
    rank_pattern: Pattern = Field(default_factory=dict)
    alpha_pattern: Pattern = Field(default_factory=dict)


class OFT(Frozen):
    """Qiu et al. 2023: learnt rotations of blocks of neurons; ``r`` blocks, or blocks of ``oft_block_size``; the other is 0."""

    type: Literal["oft"] = "oft"
    r: NonNegativeInt = 0
    oft_block_size: NonNegativeInt = Field(default_factory=lambda data: 0 if data.get("r") else 32)
    module_dropout: DropoutRate = 0.0
    target_modules: Modules = None
    exclude_modules: Modules = None
    bias_type: Literal["none", "all", "oft_only"] = "none"
    init_weights: bool = True
    layers_to_transform: Layers = None
    layers_pattern: tuple[str, ...] | str | None = None
    coft: bool = False
    eps: PositiveFloat = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: PositiveInt = 5

    @model_validator(mode="after")
    def _one_of_two(self) -> OFT:
        if (self.r == 0) == (self.oft_block_size == 0):
            raise PydanticCustomError(
                "blocks", "set one of r and oft_block_size, and the other to 0: each follows from the other"
            )
        return self


class PromptTuning(Frozen):
    """Lester et al. 2021: ``num_virtual_tokens`` learnt vectors before every text, drawn at random or begun as those of a text."""

    type: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: PositiveInt = 8
    prompt_tuning_init: Literal["random", "text"] = "random"
    prompt_tuning_init_text: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _text_given(self) -> PromptTuning:
        if (self.prompt_tuning_init == "text") != (self.prompt_tuning_init_text is not None):
            raise PydanticCustomError("prompt", "prompt_tuning_init: text and prompt_tuning_init_text belong together")
        return self


Adapter: TypeAlias = Annotated[
    LoRA | AdaLoRA | IA3 | VeRA | AdaptionPrompt | LoHa | LoKr | OFT | PromptTuning, Field(discriminator="type")
]
TYPES: Final[tuple[str, ...]] = tuple(
    get_args(member.model_fields["type"].annotation)[0] for member in get_args(get_args(Adapter)[0])
)
PEFT_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "lora": {"lora_alpha": "alpha", "lora_dropout": "dropout", "bias": "bias_type"},
    "adalora": {"lora_alpha": "alpha", "lora_dropout": "dropout", "bias": "bias_type", "deltaT": "delta_t"},
    "vera": {"vera_dropout": "dropout", "bias": "bias_type"},
    "oft": {"bias": "bias_type"},
}
"""By type of adapter: PEFT's name of a setting → Ludwig's."""

ADAPTION_PROMPT_MODELS: Final = ("llama", "mistral", "gpt2")
_TRANSPOSED: Final = frozenset(
    {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
)  # linear layers that are Conv1D
_NOT_TRANSPOSED: Final = ("loha", "lokr", "oft")
_TEXT_ALONE: Final = ("adaption_prompt", "prompt_tuning")


def unsupported(
    model_type: str, adapter: str | None, strategy: str | None, checkpointing: bool, kind: Kind
) -> str | None:
    """Why this combination cannot be trained, and what can; None where it can.

    ``model_type``: config.json's, or the architecture of one of torchvision's. ``adapter``: its type, None for full fine-tuning.
    """
    if checkpointing and kind == "image" and model_type in table():
        return f"enable_gradient_checkpointing is for models of transformers, and {model_type} is torchvision's; leave it out"
    if adapter is None or (why := reason(model_type, adapter, strategy, kind)) is None:
        return None
    supported = [kind_of for kind_of in TYPES if reason(model_type, kind_of, strategy, kind) is None]
    how = "" if strategy is None else f" under {strategy}"
    return f"{why}; {model_type} models{how} take {', '.join(supported)}, or trainable: true without an adapter"


def reason(model_type: str | None, adapter: str, strategy: str | None, kind: Kind) -> str | None:
    """Why an adapter cannot be trained so, None where it can; a model type of None is any."""
    if kind == "image" and adapter in _TEXT_ALONE:
        return f"{adapter} is for texts"
    if adapter == "adaption_prompt" and model_type is not None and model_type not in ADAPTION_PROMPT_MODELS:
        return f"adaption_prompt is for models of type {', '.join(ADAPTION_PROMPT_MODELS)}"
    if adapter in _NOT_TRANSPOSED and model_type in _TRANSPOSED:
        return f"{adapter} cannot adapt the layers of {model_type} models, which are transposed (Conv1D)"
    if adapter == "prompt_tuning" and model_type == "xlnet":
        return "prompt_tuning loses the segments of tokens, which xlnet models take"
    if adapter == "adalora" and strategy == "fsdp":
        return "adalora cuts ranks by whole matrices, which fsdp shards"
    return None

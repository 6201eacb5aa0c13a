"""Adapters on tiny models of every family: they train, they are saved and loaded as PEFT has them, and they merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from cachestore.encoders import text_model
from cachestore.encoders.spec import resolve
from cachestore.encoders.text_settings import TextSettings
from cachestore.errors import ConfigError, DamageError, EncoderError
from cachestore.keys import Json
from tests.store import tiny_models
from trainer import adapters
from trainer.schema.adapters import (
    IA3,
    OFT,
    TYPES,
    AdaLoRA,
    Adapter,
    AdaptionPrompt,
    LoHa,
    LoKr,
    LoRA,
    PromptTuning,
    VeRA,
    unsupported,
)

FAMILIES = ("bert", "gpt2", "bloom", "gptj", "opt", "llama", "t5")
# families of which PEFT does not know the layers, or whose layers are unusual
OTHERS = ("distilbert", "modernbert", "xlnet", "openai-gpt")
ADAPTERS: dict[str, Adapter] = {
    "lora": LoRA(),
    "adalora": AdaLoRA(),
    "ia3": IA3(),
    "vera": VeRA(r=8),
    "adaption_prompt": AdaptionPrompt(),
    "loha": LoHa(),
    "lokr": LoKr(),
    "oft": OFT(oft_block_size=4),
    "prompt_tuning": PromptTuning(),
}
VARIANTS: dict[str, Adapter] = {
    "dora": LoRA(use_dora=True),
    "rslora": LoRA(use_rslora=True),
    "every linear layer": LoRA(target_modules="all-linear"),
    "biases": LoRA(bias_type="all"),
    "pissa": LoRA(init_lora_weights="pissa", r=4),
    "pissa by an approximate decomposition": LoRA(init_lora_weights="pissa_niter_4", r=4, use_rslora=True),
    "olora": LoRA(init_lora_weights="olora", r=4),
    "text of a prompt": PromptTuning(prompt_tuning_init="text", prompt_tuning_init_text="the parcel"),
}
PAYLOADS = [text.encode() for text in tiny_models.TEXTS[:5]]

Spec = dict[str, Json]
Saved = Callable[[str], tuple[Path, Spec]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A tiny model of a family, with its spec."""
    known: dict[str, tuple[Path, Spec]] = {}

    def get(kind: str) -> tuple[Path, Spec]:
        if kind not in known:
            place = tiny_models.save(tmp_path_factory.mktemp("models") / kind, kind)
            settings: Any = TypeAdapter(TextSettings).validate_python(
                {"type": "auto_transformer", "pretrained_model_name_or_path": str(place), "precision": "float32"}
            )
            resolved = resolve(settings, digest=str, known=lambda _: False)
            known[kind] = place, dict(resolved.spec)
        return known[kind]

    return get


def loaded(saved: Saved, kind: str) -> tuple[dict[str, Tensor], text_model.TextModule]:
    place, spec = saved(kind)
    collate, module = text_model.load(spec, place)
    return collate(PAYLOADS), module.eval()


def vectors(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    module.eval()
    with torch.no_grad():
        found: Tensor = module(**batch)
    return found


def train(module: nn.Module, batch: dict[str, Tensor], steps: int = 4, first: int = 1) -> float:
    """A few steps of AdamW; what share of the trained tensors moved."""
    module.train()
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for step in range(first, first + steps):
        loss = (module(**batch) - 1).square().mean()
        added = adapters.penalty(module)
        (loss if added is None else loss + added).backward()
        optimizer.step()
        adapters.after_step(module, step)
        optimizer.zero_grad()
    return sum(bool((a != b).any()) for a, b in zip(before, weights, strict=True)) / len(weights)


def check(saved: Saved, kind: str, adapter: Adapter, folder: Path) -> None:
    """Trains; then what is saved, loaded by us and by PEFT alone, and merged are all the trained model."""
    batch, module = loaded(saved, kind)
    plain = vectors(module, batch)
    adapters.adapt(module, adapter, "text", 4)
    if not isinstance(adapter, PromptTuning):
        assert torch.allclose(vectors(module, batch), plain, atol=1e-5), "an adapter begins by changing nothing"
    assert train(module, batch) == 1.0
    trained = vectors(module, batch)
    assert not torch.allclose(trained, plain, atol=1e-3)

    adapters.save(module, folder, "the-base")
    again = loaded(saved, kind)[1]
    adapters.load(again, folder)
    assert torch.allclose(vectors(again, batch), trained, atol=1e-5)
    assert not any(weight.requires_grad for weight in again.parameters())
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "the-base"

    if adapters.mergeable(adapter):
        merged = adapters.merged(module)
        assert adapters.adapter_of(merged) is None
        assert {name for name, _ in merged.named_parameters()} == {
            name for name, _ in loaded(saved, kind)[1].named_parameters()
        }
        assert torch.allclose(vectors(merged, batch), trained, atol=1e-5)
    else:
        with pytest.raises(EncoderError, match=f"an adapter of type {adapter.type} adds tokens"):
            adapters.merged(module)


@pytest.mark.parametrize("adapter", TYPES)
@pytest.mark.parametrize("kind", FAMILIES)
def test_each_family_trains_the_adapters_that_the_table_allows_and_no_other(
    saved: Saved, kind: str, adapter: str, tmp_path: Path
) -> None:
    if unsupported(kind, adapter, None, False, "text") is None:
        check(saved, kind, ADAPTERS[adapter], tmp_path / "adapter")
    else:
        with pytest.raises(ConfigError, match="adapter: does not fit the model"):
            adapters.adapt(loaded(saved, kind)[1], ADAPTERS[adapter], "text")


def test_targets_that_the_model_has_not_are_told_with_those_it_has(saved: Saved) -> None:
    adapter = LoRA(target_modules=("q_proj",))
    with pytest.raises(ConfigError, match="Its layers are called c_attn, c_fc, c_proj: write a list"):
        adapters.adapt(loaded(saved, "gpt2")[1], adapter, "text")


@pytest.mark.parametrize("kind", OTHERS)
def test_a_family_whose_layers_peft_does_not_know_has_its_attention_or_its_linear_layers_adapted(
    saved: Saved, kind: str, tmp_path: Path
) -> None:
    check(saved, kind, LoRA(), tmp_path / "adapter")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora_in_all_its_forms_is_saved_as_an_adapter_of_the_model_as_it_was(
    saved: Saved, kind: str, variant: str, tmp_path: Path
) -> None:
    adapter = VARIANTS[variant]
    if (kind, variant) == ("gpt2", "olora"):
        with pytest.raises(ConfigError, match=r"adapter.init_lora_weights: olora is not for the transposed layers"):
            adapters.adapt(loaded(saved, kind)[1], adapter, "text")
        return
    check(saved, kind, adapter, tmp_path / "adapter")


def test_peft_alone_reads_what_is_saved(saved: Saved, tmp_path: Path) -> None:
    from peft import PeftModel  # after transformers was made importable

    batch, module = loaded(saved, "llama")
    adapters.adapt(module, LoRA(init_lora_weights="pissa", r=4), "text")
    train(module, batch)
    adapters.save(module, tmp_path, str(saved("llama")[0]))
    other = loaded(saved, "llama")[1]
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        other.backbone = PeftModel.from_pretrained(other.backbone, str(tmp_path))  # type: ignore[arg-type]
    assert torch.allclose(vectors(other, batch), vectors(module, batch), atol=1e-5)


def test_an_adapter_leaves_the_weights_and_the_head_of_the_model_as_they_are(saved: Saved) -> None:
    batch, module = loaded(saved, "bert")
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    adapters.adapt(module, LoRA(), "text")
    train(module, batch)
    after = adapters.adapter_of(module)
    assert after is not None
    kept = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in after.state_dict().items()
        if "lora_" not in name
    }
    assert kept.keys() == {name.removeprefix("backbone.") for name in before}
    assert all(torch.equal(weight, before[f"backbone.{name}"]) for name, weight in kept.items())


def test_tokens_of_a_prompt_are_not_pooled(saved: Saved) -> None:
    batch, module = loaded(saved, "bert")
    adapters.adapt(module, PromptTuning(num_virtual_tokens=3), "text")
    hidden = text_model.hidden_states(module.backbone, {0, None}, **batch)
    assert all(states.shape[:2] == batch["attention_mask"].shape for states in hidden.values())
    # one text alone has the vector that it has in the batch
    alone = {name: tensor[3:4, : int(batch["attention_mask"][3].sum())] for name, tensor in batch.items()}
    assert torch.allclose(vectors(module, alone)[0], vectors(module, batch)[3], atol=1e-5)


def test_a_prompt_that_leaves_a_text_no_room_is_refused(saved: Saved) -> None:
    module = loaded(saved, "bert")[1]
    with pytest.raises(ConfigError, match=r"set max_sequence_length to 56 or less, or fewer num_virtual_tokens"):
        adapters.adapt(module, PromptTuning(num_virtual_tokens=8), "text", longest=57)
    adapters.adapt(module, PromptTuning(num_virtual_tokens=8), "text", longest=56)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (LoRA(target_modules=("nope",)), r"input_features\.a\.encoder\.adapter: .*'nope'.* not found"),
        (LoRA(exclude_modules=("nope",)), "no modules were excluded"),
        (LoRA(rank_pattern={"nope": 4}), "did not match any targeted module"),
        (AdaptionPrompt(adapter_layers=9), "Unsupported model type"),
        (
            VeRA(target_modules=("query",), r=8, layers_to_transform=(9,)),
            "No layers types compatible with VeRA were found",
        ),
    ],
)
def test_an_adapter_that_names_what_the_model_lacks_is_refused(saved: Saved, adapter: Adapter, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapters.adapt(loaded(saved, "bert")[1], adapter, "text", where="input_features.a.encoder.adapter")


def ranks(module: nn.Module) -> list[int]:
    """The ranks that AdaLoRA has left of each layer."""
    return [int((weight != 0).sum()) for name, weight in module.named_parameters() if "lora_E" in name]


def test_adalora_ends_with_the_ranks_that_its_target_allows(saved: Saved) -> None:
    batch, module = loaded(saved, "bert")
    adapters.adapt(module, AdaLoRA(init_r=6, target_r=2, tinit=1, tfinal=2), "text")
    adapters.set_steps(module, 8)
    train(module, batch, steps=8)
    left = ranks(module)
    assert sum(left) == 2 * len(left)


def test_adalora_goes_on_where_it_was_stopped(saved: Saved) -> None:
    def steps(module: nn.Module, batch: dict[str, Tensor], first: int, last: int) -> None:
        weights = [weight for weight in module.parameters() if weight.requires_grad]
        for step in range(first, last + 1):
            loss = (module(**batch) - 1).square().mean()
            added = adapters.penalty(module)
            assert added is not None
            (loss + added).backward()
            with torch.no_grad():
                for weight in weights:
                    assert weight.grad is not None
                    weight.sub_(0.05 * weight.grad)
            adapters.after_step(module, step)
            for weight in weights:
                weight.grad = None

    def begun() -> tuple[dict[str, Tensor], nn.Module]:
        batch, module = loaded(saved, "bert")
        torch.manual_seed(1)
        adapters.adapt(module, AdaLoRA(init_r=6, target_r=2, tfinal=2, dropout=0.0), "text", 8)
        return batch, module

    batch, whole = begun()
    steps(whole, batch, 1, 8)
    for stopped in (3, 7):  # while ranks are cut, and after
        batch, first = begun()
        steps(first, batch, 1, stopped)
        _, second = begun()
        second.load_state_dict(first.state_dict())
        adapters.load_state(second, adapters.state(first))
        steps(second, batch, stopped + 1, 8)
        assert all(
            torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
        )


def test_adalora_without_steps_to_cut_ranks_in_is_refused(saved: Saved) -> None:
    module = loaded(saved, "bert")[1]
    adapters.adapt(module, AdaLoRA(tinit=3, tfinal=3), "text")
    with pytest.raises(ConfigError, match="the first 3 and the last 3 steps, and there are 6"):
        adapters.set_steps(module, 6)


def test_adalora_keeps_the_steps_that_are_written(saved: Saved) -> None:
    batch, module = loaded(saved, "bert")
    adapters.adapt(module, AdaLoRA(init_r=6, target_r=2, tfinal=2, total_step=5), "text")
    adapters.set_steps(module, 100)
    train(module, batch, steps=6)
    left = ranks(module)
    assert sum(left) == 2 * len(left)


def test_adalora_cuts_ranks_where_some_of_its_weights_are_frozen(saved: Saved) -> None:
    batch, module = loaded(saved, "bert")
    adapters.adapt(module, AdaLoRA(init_r=6, target_r=2), "text", 4)
    frozen = [weight for name, weight in module.named_parameters() if "lora_" in name and "layer.1." in name]
    for weight in frozen:
        weight.requires_grad_(False)
    train(module, batch, steps=4)
    left = ranks(module)
    assert 0 < sum(left) <= 2 * len(left)
    assert all(weight.grad is None for weight in frozen)


def test_the_penalty_of_adalora_pulls_its_factors_towards_orthogonal_ones(saved: Saved) -> None:
    module = loaded(saved, "bert")[1]
    adapters.adapt(module, AdaLoRA(orth_reg_weight=0.25), "text")
    expected = []
    for name, factor in module.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            square = factor @ factor.T if "lora_A" in name else factor.T @ factor
            expected.append((square - torch.eye(12)).norm())
    found = adapters.penalty(module)
    assert found is not None
    assert torch.allclose(found, 0.25 * torch.stack(expected).mean())
    assert adapters.penalty(loaded(saved, "bert")[1]) is None


def test_weights_of_another_epoch_are_saved_in_place_of_the_modules_own(saved: Saved, tmp_path: Path) -> None:
    batch, module = loaded(saved, "bert")
    adapters.adapt(module, AdaLoRA(), "text", 4)
    train(module, batch, 2)
    best = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    wanted = vectors(module, batch)
    train(module, batch, 2, first=3)
    adapters.save(module, tmp_path, "base", best)
    again = loaded(saved, "bert")[1]
    adapters.load(again, tmp_path)
    assert torch.allclose(vectors(again, batch), wanted, atol=1e-5)


def test_a_damaged_adapter_and_one_of_another_model_are_told(saved: Saved, tmp_path: Path) -> None:
    module = loaded(saved, "bert")[1]
    adapters.adapt(module, LoRA(), "text")
    adapters.save(module, tmp_path, "base")
    with pytest.raises(DamageError, match="cannot be put on the model"):
        adapters.load(loaded(saved, "gpt2")[1], tmp_path)
    (tmp_path / adapters.WEIGHTS).write_bytes(b"torn")
    with pytest.raises(DamageError, match="Restore its files"):
        adapters.load(loaded(saved, "bert")[1], tmp_path)
    (tmp_path / adapters.WEIGHTS).unlink()
    with pytest.raises(DamageError, match="Restore its files"):
        adapters.load(loaded(saved, "bert")[1], tmp_path)

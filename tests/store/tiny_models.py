"""Real models of a few thousand weights with a tokenizer of their own, saved into a directory as transformers saves them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cachestore.encoders import _torchvision

_torchvision.make_importable()

import torch  # noqa: E402
import transformers  # noqa: E402
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

CORPUS = [
    "the parcel arrived late and the box was open",
    "please refund the card that I used yesterday",
    "how long does a transfer to another bank take",
    "Café crème, größer, naïve façade; 1234567890 !?",
]
TEXTS = ["the parcel", "", "please refund the card that I used", "a", "how long does a transfer take?", "Café " * 30]

_USUAL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_ONE_LAYER = {**_USUAL, "num_hidden_layers": 1}
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "bert": _USUAL,
    "roberta": _ONE_LAYER,
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "xlm-roberta": _USUAL,
    "camembert": _ONE_LAYER,
    "albert": {**_USUAL, "embedding_size": 8},
    "electra": {**_USUAL, "embedding_size": 8},
    "deberta": {**_USUAL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        **_USUAL,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
        "conv_kernel_size": 3,
    },
    "mpnet": _ONE_LAYER,
    "modernbert": {**_USUAL, "global_attn_every_n_layers": 2, "local_attention": 8},
    "longformer": {**_USUAL, "attention_window": [4, 8]},
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
    "openai-gpt": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "gptj": {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "opt": {**_USUAL, "ffn_dim": 32, "word_embed_proj_dim": 8},
    "llama": _ONE_LAYER,
    "qwen2": {**_ONE_LAYER, "num_key_value_heads": 1},
    "qwen3": {**_ONE_LAYER, "num_key_value_heads": 1, "head_dim": 8},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "bart": {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "decoder_start_token_id": 0,
    },
}
_POSITIONS = {"gpt2": "n_positions", "openai-gpt": "n_positions", "gptj": "n_positions"}
_NO_POSITIONS = {"t5", "xlnet", "bloom"}
_WORDPIECE = {
    "bert", "distilbert", "roberta", "xlnet", "xlm-roberta", "camembert", "albert", "electra", "deberta", "deberta-v2",
    "mpnet", "modernbert", "longformer", "bart",
}  # fmt: skip
# they count positions from their padding id + 1, which is 1 in every published model
_PADDING_IS_ONE = {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"}


def save(directory: Path, kind: str = "bert", *, positions: int = 64, seed: int = 0, **options: Any) -> Path:
    """Save a tiny model of that kind and its tokenizer; ``options`` go to its config."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer(kind)
    sizes = {**_SIZES[kind], "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if kind not in _NO_POSITIONS:
        sizes[_POSITIONS.get(kind, "max_position_embeddings")] = positions
    sizes |= dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))  # of other vocabularies
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **options})
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():  # the usual start is so close to zero that poolings hardly differ
            weight.add_(torch.randn_like(weight) * 0.2)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_sentence_model(
    directory: Path,
    pooling: Mapping[str, Any],
    *,
    normalize: bool = True,
    transformer: Mapping[str, Any] | None = None,
    prefix: str = "sentence_transformers.models",
) -> Path:
    """Add the files that make a saved model one of sentence-transformers."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    write_json(
        directory / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"{prefix}.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    (directory / "1_Pooling").mkdir(exist_ok=True)
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, **pooling})
    if transformer is not None:
        write_json(directory / "sentence_bert_config.json", transformer)
    return directory


def edit_json(path: Path, **changes: Any) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _tokenizer(kind: str) -> Any:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if kind in _WORDPIECE:
        built = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        built.normalizer = normalizers.BertNormalizer()
        built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        names = ["<s>", "[PAD]", "[UNK]", "[CLS]", "[SEP]"] if kind in _PADDING_IS_ONE else [*special.values()]
        built.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=names))
        template = "$A [SEP]:0 [CLS]:2" if kind == "xlnet" else "[CLS] $A [SEP]"
        ids = [(name, built.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        built.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
        names_of_inputs = ["input_ids", "token_type_ids", "attention_mask"]
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=built, model_input_names=names_of_inputs, model_max_length=512, **special
        )
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    names = ["<pad>", "</s>"] if kind == "t5" else ["<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=names, initial_alphabet=alphabet)
    )
    if kind == "t5":
        ids = [("</s>", built.token_to_id("</s>"))]
        built.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=ids)
        return transformers.PreTrainedTokenizerFast(tokenizer_object=built, pad_token="<pad>", eos_token="</s>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<|endoftext|>")

"""Ten configs as people get them wrong, on a command line: every fault is named at once, with its place and what would be right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.app import run

DATA = "review,title,age,department,recommended,rating\nsoft and warm,lovely,34,Tops,1,5\ntoo small,no,51,Dresses,0,2\n"


@dataclass(frozen=True)
class Faulty:
    """A config, and what begins the line of each of its faults."""

    config: str
    lines: tuple[str, ...]


CONFIGS = {
    "typos at every level": Faulty(
        """
input_fetures: []
input_features:
  - {name: review, type: text, encodr: minilm, encoder: {type: hashing, dimm: 64}}
  - {name: age, type: number, preprocessing: {normalisation: zscore}}
output_features:
  - {name: recommended, type: binary, decoder: {num_fc_layer: 1}, loss: {positive_class_wight: 2}}
combiner: {type: concat, num_fc_layer: 1}
trainer: {epoch: 3, num_worker: 2, optimizer: {type: adam, weight_deacy: 0.1}, learning_rate_scheduler: {warmup_fracton: 0.1}}
preprocessing: {splt: random}
backnd: local
""",
        (
            "input_fetures: unknown key; did you mean 'input_features'?",
            "backnd: unknown key; did you mean 'backend'?",
            "input_features.review.encodr: unknown key; did you mean 'encoder'?",
            "input_features.review.encoder.dimm: unknown key; did you mean 'dim'?",
            "input_features.age.preprocessing.normalisation: unknown key; did you mean 'normalization'?",
            "output_features.recommended.decoder.num_fc_layer: unknown key; did you mean 'num_fc_layers'?",
            "output_features.recommended.loss.positive_class_wight: unknown key; did you mean 'positive_class_weight'?",
            "combiner.num_fc_layer: unknown key; did you mean 'num_fc_layers'?",
            "trainer.epoch: unknown key; did you mean 'epochs'?",
            "trainer.num_worker: unknown key; did you mean 'num_workers'?",
            "trainer.optimizer.weight_deacy: unknown key; did you mean 'weight_decay'?",
            "trainer.learning_rate_scheduler.warmup_fracton: unknown key; did you mean 'warmup_fraction'?",
            "preprocessing.splt: unknown key; did you mean 'split'?",
        ),
    ),
    "wrong types": Faulty(
        """
input_features:
  - {name: 7, type: number}
  - {name: review, type: text, encoder: {type: hashing, dim: large, lowercase: 1}}
output_features:
  - {name: rating, type: number, loss: {type: huber, delta: -1}}
trainer: {epochs: "3", batch_size: 1.5, use_mixed_precision: "yes", learning_rate: fast}
random_seed: one
""",
        (
            "input_features[0].name: must be text, not 7",
            "input_features.review.encoder.dim: ",
            "input_features.review.encoder.lowercase: ",
            "output_features.rating.loss.delta: must be greater than 0, not -1",
            "trainer.epochs: must be a whole number, not '3'",
            "trainer.batch_size: must be a whole number or 'auto', not 1.5",
            "trainer.use_mixed_precision: must be true or false, not 'yes'",
            "trainer.learning_rate: must be a number or ",
            "random_seed: must be a whole number, not 'one'",
        ),
    ),
    "types that do not exist, and what stands behind them": Faulty(
        """
input_features:
  - {name: review, type: txt, encoder: {type: hashng, dimm: 4}, preprocessing: {missing: drop_row}}
  - {name: age, type: nmber, preprocessing: {normalization: zscor}}
output_features:
  - {name: recommended, type: binry, decoder: {num_fc_layer: 2}}
combiner: {type: concta, dropuot: 0.1}
trainer: {optimizer: {type: adm, wait: 1}}
preprocessing: {split: {type: randm, probability: 0.5}}
""",
        (
            "input_features.review.type: there is no 'txt'; did you mean 'text'?",
            "input_features.review.encoder.type: unknown type 'hashng'; did you mean 'hashing'?",
            "input_features.review.encoder.dimm: unknown key; did you mean 'dim'?",
            "input_features.review.preprocessing.missing: unknown key",
            "input_features.age.type: there is no 'nmber'; did you mean 'number'?",
            "input_features.age.preprocessing.normalization: there is no 'zscor'; did you mean 'zscore'?",
            "output_features.recommended.type: there is no 'binry'; did you mean 'binary'?",
            "output_features.recommended.decoder.num_fc_layer: unknown key; did you mean 'num_fc_layers'?",
            "combiner.type: there is no 'concta'; did you mean 'concat'?",
            "combiner.dropuot: unknown key; did you mean 'dropout'?",
            "trainer.optimizer.type: there is no 'adm'; did you mean 'adam'?",
            "trainer.optimizer.wait: unknown key",
            "preprocessing.split.type: there is no 'randm'; did you mean 'random'?",
            "preprocessing.split.probability: unknown key; did you mean 'probabilities'?",
        ),
    ),
    "columns that the data lacks, beside a typo": Faulty(
        """
input_features:
  - {name: reviw, type: text, encoder: hashing}
  - {name: years, column: ages, type: number}
output_features:
  - {name: recomended, type: binary}
preprocessing: {split: {type: stratify, column: departmnt}}
trainer: {epohcs: 3}
""",
        (
            "input_features.reviw: FILE has no column 'reviw'; did you mean 'review'?",
            "input_features.years: FILE has no column 'ages'; did you mean 'age'?",
            "output_features.recomended: FILE has no column 'recomended'; did you mean 'recommended'?",
            "preprocessing.split.column: FILE has no column 'departmnt'; did you mean 'department'?",
            "trainer.epohcs: unknown key; did you mean 'epochs'?",
        ),
    ),
    "columns that the data lacks, and nothing else": Faulty(
        """
input_features:
  - {name: reviw, type: text, encoder: hashing}
  - {name: ages, type: number}
output_features:
  - {name: rating, type: number}
""",
        ("FILE has no columns 'reviw'; did you mean 'review', 'ages'; did you mean 'age'? Its columns: 'review'",),
    ),
    "settings in conflict": Faulty(
        """
input_features:
  - {name: review, type: text, encoder: {type: minilm, prompt: "a: ", prompt_name: query}}
  - {name: rating, type: number}
  - {name: again, column: recommended, type: category}
output_features:
  - {name: rating, type: number, preprocessing: {missing_value_strategy: drop_row}}
  - {name: recommended, type: binary}
trainer: {validation_field: recommended, validation_metric: r2, optimizer: {type: sgd, nesterov: true}}
preprocessing: {split: {type: random, probabilities: [0.9, 0.9, 0.1]}}
""",
        (
            "input_features.review.encoder: prompt and prompt_name are two ways",
            "output_features.rating: is an input as well; the model would be given the answer",
            "input_features.again.column: 'recommended' is the column of the output 'recommended'",
            "trainer.validation_metric: the output 'recommended' has no 'r2'",
            "trainer.optimizer: nesterov: true needs a momentum",
            "preprocessing.split.probabilities: the shares of train, validation and test must sum to 1",
        ),
    ),
    "validation faults behind others": Faulty(
        """
input_features:
  - {name: review, type: text, encoder: hashing}
output_features:
  - {name: recommended, type: binary, treshold: 0.4}
  - {name: rating, type: number}
trainer: {epochs: 0, validation_field: recomended, validation_metric: acuracy}
""",
        (
            "output_features.recommended.treshold: unknown key; did you mean 'threshold'?",
            "trainer.epochs: must be greater than 0, not 0",
            "trainer.validation_field: there is no output 'recomended'; did you mean 'recommended'?",
            "trainer.validation_metric: no output has 'acuracy'; did you mean 'accuracy'?",
        ),
    ),
    "what Ludwig has and this has not": Faulty(
        """
model_type: gbm
input_features:
  - {name: review, type: text, encoder: {type: parallel_cnn}}
  - {name: title, type: text, encoder: bert, trainable: true, adapter: {type: boft}}
output_features:
  - {name: rating, type: number, dependencies: [recommended]}
combiner: {type: tabnet}
trainer: {compile: true, strategy: deepspeed}
backend: {type: ray, cache_format: hdf5}
""",
        (
            "model_type: not supported yet",
            "input_features.review.encoder.type: 'parallel_cnn' is not supported yet",
            "input_features.title.adapter.type: 'boft' is not supported yet; choose one of lora, adalora",
            "output_features.rating.dependencies: not supported yet",
            "combiner.type: 'tabnet' is not supported yet",
            "trainer.compile: not supported yet",
            "trainer.strategy: 'deepspeed' is not supported: fsdp shards parameters",
            "backend.cache_format: has no meaning here",
        ),
    ),
    "sections of the wrong shape": Faulty(
        """
input_features: {review: text}
output_features:
  - rating
  - {type: number}
  - {name: recommended}
combiner: 3
trainer: [epochs, 3]
preprocessing: {split: [0.7, 0.1, 0.2]}
defaults: {text: minilm, nmber: {}}
""",
        (
            "input_features: must be a list of features",
            "output_features[0]: must be a mapping with a name and a type, not 'rating'",
            "output_features[1].name: is missing",
            "output_features.recommended.type: is missing; choose one of ",
            "combiner: must be a mapping, not 3",
            "trainer: must be a mapping, not a list of 2",
            "preprocessing.split: must be a mapping or null, not a list of 3",
            "defaults.text: must be a mapping of encoder, preprocessing, not 'minilm'",
            "defaults.nmber: there is no 'nmber'; did you mean 'number'?",
        ),
    ),
    "older forms, wrong": Faulty(
        """
input_features:
  - {name: review, type: text, encoder: hashing, dim: 0}
  - {name: age, type: numerical, preprocessing: {normalization: zscoer}}
output_features:
  - {name: rating, type: numerical, num_fc_layers: -1}
training: {epochs: 0}
preprocessing: {split_probabilities: [0.5, 0.5]}
""",
        (
            "input_features.review.dim: ",
            "input_features.age.preprocessing.normalization: there is no 'zscoer'; did you mean 'zscore'?",
            "output_features.rating.num_fc_layers: must be at least 0, not -1",
            "training.epochs: must be greater than 0, not 0",
            "preprocessing.split_probabilities: must be a list of 3, not a list of 2",
        ),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_fault_is_named_at_once(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, config = tmp_path / "reviews.csv", tmp_path / "config.yaml"
    data.write_text(DATA, encoding="utf-8")
    config.write_text(CONFIGS[name].config, encoding="utf-8")
    code = run(["train", str(data), "-c", str(config), "--output", str(tmp_path / "run")])
    shown = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in shown
    expected = [line.replace("FILE", str(data)) for line in CONFIGS[name].lines]
    lines = shown.strip().splitlines()
    if len(expected) > 1:
        assert lines[0].endswith(f"{config} has {len(expected)} faults:"), shown
        assert len(lines) == len(expected) + 1
    unnamed = [start for start in expected if not any(start in line for line in lines)]
    assert not unnamed, shown
    assert not (tmp_path / "run").exists()

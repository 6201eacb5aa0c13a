"""Several encoders of one column, texts made of several columns, and one pass for encoders that share weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from cachestore import open_store
from cachestore.build import run
from cachestore.encoders import Encoded
from cachestore.errors import ColumnNotFound, UsageError
from cachestore.keys import fingerprint, key
from cachestore.manifest import MISSING, PRESENT, SKIPPED
from tests.store import tiny_models
from tests.store.counting import CountingEncoder

TEXTS = [f"text {number}" for number in range(100)]


class Templated(CountingEncoder):
    """Encodes texts that are rendered from several columns."""

    def __init__(self, prompt_template: str) -> None:
        super().__init__()
        self.prompt_template = prompt_template


@dataclass
class Pooled:
    """One of several encoders over the same hidden states; ``passes`` counts the payloads that went through the model."""

    how: str
    passes: list[bytes]
    refuse: bytes = b"nothing is refused"
    dim: int = 4
    share: str | None = "the model"
    spec: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.spec = {"kind": "pooled", "how": self.how, "dtype": "float32", "precision": "float32"}

    def encode(self, payloads: Sequence[bytes]) -> Encoded:
        return self.encode_for([self], payloads)[0]

    def encode_for(self, encoders: Sequence[Pooled], payloads: Sequence[bytes]) -> list[Encoded]:
        self.passes += payloads
        hidden = np.array([[*payload[-4:]] for payload in payloads], np.float32)
        refused = {row: "it is refused" for row, payload in enumerate(payloads) if payload == self.refuse}
        return [Encoded(hidden if one.how == "as it is" else 2 * hidden, refused) for one in encoders]


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


def test_several_encoders_of_a_column_have_a_manifest_column_each_whatever_their_order(store):
    one, other = CountingEncoder("float16"), CountingEncoder("float32")
    both = run(store, {"text": TEXTS, "n": TEXTS}, {"text": [one, other]})
    swapped = run(store, {"text": TEXTS, "n": TEXTS}, {"text": [other, one]})
    assert swapped.manifest.id == both.manifest.id
    assert swapped.counts.encoded == 0
    names = [column.name for column in both.manifest.columns]
    assert len(names) == 2
    assert all(name.startswith("text@") for name in names)
    for column in both.manifest.columns:
        vectors, mask = store.vectors(both.manifest, column.name)
        assert mask.all()
        assert vectors.dtype == column.spec["dtype"]
        np.testing.assert_array_equal(vectors, one.encode([t.encode() for t in TEXTS]).astype(vectors.dtype))


def test_one_encoder_given_twice_is_one(store):
    built = run(store, {"text": TEXTS}, {"text": [CountingEncoder(), CountingEncoder()]})
    assert [column.name for column in built.manifest.columns] == ["text"]
    assert built.manifest.id == run(store, {"text": TEXTS}, {"text": CountingEncoder()}).manifest.id
    with pytest.raises(UsageError, match="has no encoder"):
        run(store, {"text": TEXTS}, {"text": []})


def test_encoders_that_share_weights_take_one_pass_for_each_text(store):
    passes: list[bytes] = []
    plain, doubled = Pooled("as it is", passes), Pooled("twice", passes)
    built = run(store, {"text": [*TEXTS, *TEXTS[:7]]}, {"text": [plain, doubled]})
    assert sorted(passes) == sorted(text.encode() for text in TEXTS)
    assert (built.counts.encoded, built.counts.duplicates) == (200, 14)
    by_how = {column.spec["how"]: store.vectors(built.manifest, column.name)[0] for column in built.manifest.columns}
    np.testing.assert_array_equal(by_how["twice"], 2 * by_how["as it is"])
    np.testing.assert_array_equal(by_how["as it is"][:100], [[*text.encode()[-4:]] for text in TEXTS])


def test_what_one_of_them_has_stored_is_not_stored_again_and_the_other_gets_its_own(store):
    passes: list[bytes] = []
    run(store, {"text": TEXTS[:60]}, {"text": Pooled("as it is", passes)})
    assert len(passes) == 60
    passes.clear()
    built = run(store, {"text": TEXTS}, {"text": [Pooled("as it is", passes), Pooled("twice", passes)]})
    assert sorted(passes) == sorted(text.encode() for text in TEXTS)
    assert (built.counts.encoded, built.counts.hits) == (140, 60)


def test_two_columns_of_one_encoder_and_one_of_another_share_a_pass_too(store):
    passes: list[bytes] = []
    columns = {"a": Pooled("as it is", passes), "b": [Pooled("as it is", passes), Pooled("twice", passes)]}
    built = run(store, {"a": TEXTS, "b": TEXTS[50:] + [f"more {n}" for n in range(50)]}, columns)
    assert len(passes) == len(set(passes)) == 150
    assert built.counts.encoded == 150 + 100


def test_a_payload_that_the_shared_model_refuses_is_skipped_for_each(store):
    passes: list[bytes] = []
    pair = [Pooled("as it is", passes, b"text 5"), Pooled("twice", passes, b"text 5")]
    built = run(store, {"text": TEXTS}, {"text": pair})
    assert built.counts.skipped == 2
    assert {(cell.row, cell.why) for cell in built.skipped_cells} == {(5, "it is refused")}
    assert len(passes) == 100


def test_a_template_makes_one_text_of_several_columns(store):
    table = {"title": ["A", None, None, "D"], "review": ["good", "bad", None, b"\xff"]}
    encoder = Templated("{title}: {review}. {{as is}}")
    built = run(store, table, {"review": encoder})
    assert [column.name for column in built.manifest.columns] == ["review"]
    assert [payload.decode() for payload in encoder.seen] == ["A: good. {as is}", ": bad. {as is}"]
    assert store.reasons(built.manifest, "review").tolist() == [PRESENT, PRESENT, MISSING, SKIPPED]
    assert store.missing([key(fingerprint(encoder.spec), b"A: good. {as is}")]) == []
    again = Templated("{title}: {review}. {{as is}}")
    assert run(store, table, {"review": again}).manifest.id == built.manifest.id
    assert again.seen == []


def test_the_column_a_template_stands_for_need_not_be_there_and_those_it_names_must(store):
    built = run(store, {"title": TEXTS}, {"text": Templated("about {title}")})
    assert [column.name for column in built.manifest.columns] == ["text"]
    with pytest.raises(ColumnNotFound, match="titel"):
        run(store, {"title": TEXTS}, {"text": Templated("about {titel}")})


def test_another_template_is_another_build_of_the_same_file(store, tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("title,review\nA,good\nB,bad\n")
    first = run(store, path, {"review": Templated("{title} {review}")})
    second = run(store, path, {"review": Templated("{review} {title}")})
    assert (first.recognised, second.recognised) == (False, False)
    assert first.manifest.id != second.manifest.id
    assert run(store, path, {"review": Templated("{title} {review}")}).recognised


def test_two_poolings_of_a_model_are_one_pass_of_it(store, tmp_path, monkeypatch):
    from cachestore.encoders import text

    passes = []
    real = text.encode_many

    def counted(specs, directory, dims, payloads, **settings):
        passes.extend(payloads)
        return real(specs, directory, dims, payloads, **settings)

    monkeypatch.setattr(text, "encode_many", counted)
    model = str(tiny_models.save(tmp_path / "model"))
    settings = {"type": "auto_transformer", "pretrained_model_name_or_path": model, "dtype": "float32"}
    poolings = [{**settings, "reduce_output": how} for how in ("mean", "max", "last")]
    built = run(store, {"text": TEXTS}, {"text": [*poolings, {**settings, "normalize": True}]})
    assert len(passes) == len(set(passes)) == 100
    assert built.counts.encoded == 400
    with open_store(tmp_path / "alone") as alone:
        for column in built.manifest.columns:
            again = {**settings, "reduce_output": column.spec["reduce_output"], "normalize": column.spec["normalize"]}
            expected = alone.embed(TEXTS, again)
            np.testing.assert_allclose(store.vectors(built.manifest, column.name)[0], expected, atol=1e-6)

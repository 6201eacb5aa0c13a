"""B3 20, 21, 31, 32: a key never stands for two vectors, and what does not change a vector never changes its key."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cachestore import index, keys, open_store
from cachestore.build import run
from cachestore.encoders import HashingSettings, TextSettings, open_encoder
from cachestore.errors import DamageError
from cachestore.fill import Limits
from cachestore.keys import Fingerprint, Key, canonical
from tests.faults.record import Record
from tests.store import tiny_models
from tests.store.counting import CountingEncoder
from tests.store.test_keys import json_values
from tests.store.tiny_models import edit_json

Recording = Callable[[str], Record]
ROOT = Path(__file__).parents[2]
PAYLOAD = b"the same text"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("models") / "bert")


def key_of(settings: dict[str, Any]) -> Key:
    return keys.key(keys.fingerprint(open_encoder(settings).spec), PAYLOAD)


# -- 20: the matrix ----------------------------------------------------------------------------------------------------


def _one_ulp(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[0]
    flat = weights[name].reshape(-1)
    flat[0] = np.nextafter(flat[0], np.float32(9))
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def _sentence(pooling: str = "mean", **options: Any) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        tiny_models.make_sentence_model(model, {"pooling_mode": pooling}, **{"normalize": False, **options})

    return change


FILES: dict[str, Callable[[Path], object]] = {
    "one weight by 1 ulp": _one_ulp,
    "config: activation": lambda model: edit_json(model / "config.json", hidden_act="relu"),
    "config: layers": lambda model: edit_json(model / "config.json", num_hidden_layers=1),
    "config: layer norm": lambda model: edit_json(model / "config.json", layer_norm_eps=1e-5),
    "config: attention": lambda model: edit_json(model / "config.json", attn_implementation="eager"),
    "tokenizer.json": lambda model: edit_json(model / "tokenizer.json", normalizer=None),
    "tokenizer_config.json": lambda model: edit_json(model / "tokenizer_config.json", truncation_side="left"),
    "a vocabulary": lambda model: (model / "vocab.txt").write_text("the"),
    "special tokens": lambda model: (model / "special_tokens_map.json").write_text('{"cls_token": "[X]"}'),
    "added tokens": lambda model: (model / "added_tokens.json").write_text('{"[X]": 7}'),
    "modules: length": _sentence(transformer={"max_seq_length": 16}),
    "modules: lower case": _sentence(transformer={"max_seq_length": 64, "do_lower_case": True}),
}
TEXT: dict[str, list[dict[str, Any]]] = {
    "reduce_output": [{"reduce_output": how} for how in ("sum", "max", "cls_pooled", "last", "cls_pooled+mean")],
    "layer": [{"layer": layer} for layer in (0, 1)],
    "prompt": [{"prompt": prompt} for prompt in ("query: ", "query:", "passage: ")],
    "max_sequence_length": [{"max_sequence_length": length} for length in (8, 32, 63)],
    "normalize": [{"normalize": True}],
    "precision": [{"precision": "bfloat16"}],
    "dtype": [{"dtype": "float32"}],
}
NO_CHANGE = {"batch_tokens", "prompt_name"}  # speed, and another way to write prompt
HASHING: dict[str, list[dict[str, Any]]] = {
    "dim": [{"dim": dim} for dim in (1, 32, 1023)],
    "ngram_range": [{"ngram_range": [1, 1]}, {"ngram_range": [2, 2]}, {"ngram_range": [1, 3]}],
    "lowercase": [{"lowercase": False}],
    "normalize": [{"normalize": False}],
    "dtype": [{"dtype": "float32"}],
}


def test_every_setting_has_its_place_in_the_matrix() -> None:
    """A setting added later must be put here: does it change vectors, or only say where the model lies?"""
    assert set(TextSettings.model_fields) == {*TEXT, *NO_CHANGE, "type", "pretrained_model_name_or_path"}
    assert set(HashingSettings.model_fields) == {*HASHING, "type"}


def test_any_two_encoders_that_differ_in_anything_have_different_keys(
    saved: Path, tmp_path: Path, record: Recording
) -> None:
    found: dict[str, Key] = {}
    base = {"type": "auto_transformer", "precision": "float32", "pretrained_model_name_or_path": str(saved)}
    found["text"] = key_of(base)
    for settings in itertools.chain(*TEXT.values()):
        found[f"text {settings}"] = key_of({**base, **settings})
    for name, change in FILES.items():
        model = Path(shutil.copytree(saved, tmp_path / name.replace(" ", "-")))
        change(model)
        found[f"text {name}"] = key_of({**base, "pretrained_model_name_or_path": str(model)})
    found["hashing"] = key_of({"type": "hashing"})
    for settings in itertools.chain(*HASHING.values()):
        found[f"hashing {settings}"] = key_of({"type": "hashing", **settings})
    with record("20 a field that changes vectors changes the key") as trial:
        for one, other in itertools.combinations(found, 2):
            assert found[one] != found[other], (one, other)
            trial.trial()
    assert len(found) > 30


@pytest.mark.parametrize("kind", ["text", "hashing"])
def test_every_field_of_a_spec_counts(saved: Path, kind: str) -> None:
    """Also those that only a later version of this package changes: the number of its preprocessing, say."""
    settings = {"type": "auto_transformer", "precision": "float32", "pretrained_model_name_or_path": str(saved)}
    spec = open_encoder(settings if kind == "text" else "hashing").spec
    assert {"kind", "preprocessing", "precision", "dtype"} <= set(spec)
    seen = {keys.fingerprint(spec)}
    for field in spec:
        for other in (None, "another", 12345, [spec[field]], not spec[field]):
            seen.add(keys.fingerprint({**spec, field: other}))
        seen.add(keys.fingerprint({name: value for name, value in spec.items() if name != field}))
    assert len(seen) == 1 + 6 * len(spec)


def test_what_changes_no_vector_changes_no_key(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"type": "auto_transformer", "precision": "float32", "pretrained_model_name_or_path": str(saved)}
    expected = key_of(base)
    moved = Path(shutil.copytree(saved, tmp_path / "another" / "place"))
    elsewhere = {**base, "pretrained_model_name_or_path": str(moved)}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((moved / name).read_text())
        (moved / name).write_text(json.dumps(dict(reversed(content.items())), indent=7))  # order and spacing
    (moved / "README.md").write_text("a card")
    (moved / "pytorch_model.bin").write_bytes(b"the same weights as a pickle")
    for path in moved.iterdir():
        os.utime(path, (1, 1))
    assert key_of(elsewhere) == expected
    link = tmp_path / "link"
    link.symlink_to(moved)
    assert key_of({**base, "pretrained_model_name_or_path": str(link)}) == expected
    monkeypatch.chdir(moved.parent)
    assert key_of({**base, "pretrained_model_name_or_path": "./place"}) == expected
    assert key_of({**base, "reduce_output": "mean", "max_sequence_length": 64, "normalize": False}) == expected
    cls = key_of({**base, "reduce_output": "cls_pooled", "normalize": True})
    _sentence("cls", normalize=True)(moved)
    assert key_of(elsewhere) == cls, "whether a setting or a file of the model says it"
    for variable, value in (("CUDA_VISIBLE_DEVICES", "1"), ("OMP_NUM_THREADS", "7"), ("TOKENIZERS_PARALLELISM", "1")):
        monkeypatch.setenv(variable, value)
        assert key_of(base) == expected


@pytest.mark.parametrize(
    "limits", [Limits(), Limits(shard_rows=3), Limits(window_rows=2), Limits(shard_seconds=0), Limits(window_bytes=1)]
)
def test_batches_order_names_and_files_are_not_in_a_key(tmp_path: Path, limits: Limits) -> None:
    texts = [f"row {row}" for row in range(20)]
    (tmp_path / "a.csv").write_text("n,text\n" + "".join(f"{row},{text}\n" for row, text in enumerate(texts)))
    sources: list[tuple[Any, str]] = [
        (tmp_path / "a.csv", "text"),
        ({"another name": texts[::-1]}, "another name"),
        ({"text": texts * 2}, "text"),
    ]
    expected = set(keys.keys(keys.fingerprint(CountingEncoder().spec), [text.encode() for text in texts]))
    for at, (source, column) in enumerate(sources):
        with open_store(tmp_path / f"store {at}") as store:
            run(store, source, {column: CountingEncoder()}, limits=limits)
            stored = {key.tobytes() for block, _ in store.index.entries() for key in block}
        assert stored == expected


# -- 20: the encoding that is hashed -----------------------------------------------------------------------------------


@given(json_values, json_values)
def test_no_encoding_begins_another(left: Any, right: Any) -> None:
    """So what follows one, such as the keys in a chunk's id or what stands next in a list, is never taken for a part of it."""
    one, other = canonical(left), canonical(right)
    assert one == other or not (one.startswith(other) or other.startswith(one))


@given(st.lists(json_values, min_size=1, max_size=3))
def test_a_text_that_looks_like_an_encoding_is_a_text(values: list[Any]) -> None:
    """The attack on joined fields: put the bytes of one value, its tag and its length, inside another."""
    forged = b"".join(canonical(value) for value in values).decode("latin-1")
    encodings = {canonical(forged), canonical([forged]), canonical({"a": forged}), canonical({forged: "a"})}
    assert len(encodings) == 4
    assert canonical(values) not in encodings


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_a_fingerprint_never_runs_into_its_payload(encoder: bytes, payload: bytes) -> None:
    one, other = Fingerprint(encoder.ljust(32, b"\0")[:32]), Fingerprint(payload.ljust(32, b"\0")[:32])
    assert (keys.key(one, payload) == keys.key(other, encoder)) == ((one, payload) == (other, encoder))


# -- 21: collisions ----------------------------------------------------------------------------------------------------


def test_payloads_that_collide_under_xxh3_are_two_payloads(tmp_path: Path) -> None:
    """XXH3 multiplies words after mixing them with a public secret: a word equal to it makes the product 0, whatever the other is.

    Such pairs are published (Cyan4973/xxHash issues 175 and 1127), so XXH3 is never what identifies a vector.
    """
    secret = bytes.fromhex("b8fe6c3923a44bbe")
    one, other = (secret + struct.pack("<Q", word) + bytes(16) for word in (1, 2))
    assert xxhash.xxh3_64_digest(one) == xxhash.xxh3_64_digest(other)
    encoder = CountingEncoder()
    names = keys.keys(keys.fingerprint(encoder.spec), [one, other])
    assert names[0] != names[1]
    with open_store(tmp_path / "store") as store:
        with store.writing(), store.fill(encoder) as fill:
            fill.add({name: payload for name, payload in zip(names, (one, other), strict=True) if name is not None})
            fill.flush()
        out = np.zeros((2, 8), np.float16)
        store.gather(np.frombuffer(b"".join(name or b"" for name in names), "V32"), store.index.lookup(names), out)
    np.testing.assert_array_equal(out, encoder.encode([one, other]).astype(np.float16))


@pytest.mark.parametrize("pairs", [3_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_an_index_that_confuses_keys_is_found_out_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Recording, pairs: int
) -> None:
    """The index knows keys by 16 bits only, so that it leads every second of a pair to the row of the first."""

    def weak(key: bytes) -> Key:
        return Key(bytes(30) + key[:2])

    lookup, place = index.Index.lookup, index._place

    def weak_lookup(self: index.Index, wanted: Any) -> index.Locations:
        return lookup(self, [None if key is None else weak(key) for key in wanted])

    def weak_place(txn: Any, dbs: Any, number: int, names: Any, rows: Any, **options: Any) -> None:
        place(txn, dbs, number, [weak(key) for key in names], rows, **options)

    encoder = CountingEncoder()
    identity = keys.fingerprint(encoder.spec)
    firsts: dict[bytes, Key] = {}
    seconds: list[Key] = []
    for number in itertools.count():
        key = keys.key(identity, b"%d" % number)
        if firsts.setdefault(weak(key), key) != key:
            seconds.append(key)
        if len(seconds) == pairs:
            break
    with open_store(tmp_path / "store") as store:
        monkeypatch.setattr(index.Index, "lookup", weak_lookup)
        monkeypatch.setattr(index, "_place", weak_place)
        with store.writing():
            store.put(encoder.spec, list(firsts.values()), np.ones((len(firsts), 8), np.float16))
        out = np.zeros((1, 8), np.float16)
        found = store.index.lookup(list(firsts.values()))
        store.gather(np.frombuffer(b"".join(firsts.values()), "V32"), found, np.zeros((len(firsts), 8), np.float16))
        with record("21 a second payload at the row of a first") as trial:
            for key in seconds:
                found = store.index.lookup([key])
                assert found.shards[0] >= 0
                with pytest.raises(DamageError, match="other keys than the index says"):
                    store.gather(np.frombuffer(key, "V32"), found, out)
                trial.trial()
        assert not out.any()


# -- 31, 32: the same keys wherever they are made ----------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from cachestore import keys, open_store
from cachestore.build import run
from cachestore.encoders import open_encoder
folder = Path(sys.argv[1])
with open_store(folder / "store") as store:
    spec = {"type": "auto_transformer", "precision": "float32", "pretrained_model_name_or_path": sys.argv[2]}
    print(keys.key(keys.fingerprint(store.open_encoder(spec).spec), "na\\xefve caf\\xe9".encode()).hex())
    print(run(store, sys.argv[3], {"text": "hashing"}).manifest.id)
"""


def test_keys_are_the_same_for_every_hash_seed_locale_folder_and_user(
    saved: Path, folder: Path, record: Recording
) -> None:
    folder.chmod(0o755)
    ways: list[tuple[dict[str, str], str, list[str]]] = [
        *(({"PYTHONHASHSEED": seed}, str(ROOT), []) for seed in ("0", "1", "4294967295")),
        ({"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, str(ROOT), []),
        ({"LC_ALL": "POSIX", "TZ": "Pacific/Kiritimati", "HOME": "/nonexistent"}, "/", []),
    ]
    if os.getuid() == 0 and shutil.which("setpriv"):
        # another user, who may read everything, since this interpreter may lie where others cannot look
        capability = [f"--{which}-caps=+dac_read_search" for which in ("inh", "ambient")]
        ways.append(({}, "/", ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *capability]))
    found = set()
    with record("31, 32 the same keys for every hash seed, locale, folder and user") as trial:
        for at, (environment, start, command) in enumerate(ways):
            place = folder / str(at)
            place.mkdir()
            (place / "table.csv").write_text("text\nnaïve café\nß\n文\n", encoding="utf-8")
            if command:
                os.chown(place, 65534, -1)
            ran = subprocess.run(
                [*command, sys.executable, "-W", "ignore", "-c", PROGRAM, place, saved, place / "table.csv"],
                cwd=start,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, (ways[at], ran.stderr)
            found.add(ran.stdout)
            trial.trial()
    assert len(found) == 1, found

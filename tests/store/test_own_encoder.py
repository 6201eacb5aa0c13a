"""The README's own encoder, as it stands there: an API on loopback that fails as APIs do gives every vector once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cachestore import Store, build, keys, open_store
from cachestore.build import run as run_build
from cachestore.encoders import Encoder, open_encoder
from cachestore.errors import EncoderError
from cachestore.fill import Limits
from cli.app import app
from tests.store import embedding_api
from tests.store.embedding_api import DIM, Api, vector
from trainer import predict, train

KEY = "a key that nobody may see"
TEXTS = [f"text {at % 70}, größer" for at in range(90)]
DISTINCT = list(dict.fromkeys(TEXTS))


def vectors(texts: list[str]) -> np.ndarray[Any, Any]:
    return np.array([vector(text) for text in texts], np.float16)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("EMBEDDING_API_KEY", KEY)
    with embedding_api.served() as server:
        yield server


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the section."""
    folder = tmp_path_factory.mktemp("readme")
    embedding_api.write_blocks(folder)
    return folder


@pytest.fixture(scope="module")
def module(blocks: Path) -> ModuleType:
    return embedding_api.load_module(blocks)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def encoder(module: ModuleType, api: Api, model: str = "tiny", **options: Any) -> Any:
    return module.ApiEncoder(api.url, model, DIM, **{"batch": 8, "pause": 0.001, **options})


def test_it_is_an_encoder(module: ModuleType, api: Api) -> None:
    own = encoder(module, api)
    assert isinstance(own, Encoder)
    assert own.encode([]).shape == (0, DIM)
    assert not api.requests


def test_every_text_is_embedded_once_whatever_the_api_does(module: ModuleType, api: Api, store: Store) -> None:
    api.faults = ["429 0", "500", "drop", "half", "503 " + formatdate(usegmt=True), "none", "429", "drop"]
    manifest = build(store, {"text": TEXTS}, {"text": encoder(module, api)})
    found, mask = store.vectors(manifest, "text")
    assert mask.all()
    np.testing.assert_array_equal(found, vectors(TEXTS))
    assert api.embedded == Counter(DISTINCT)
    assert len(api.requests) == 9 + 7, "70 distinct texts by 8, and one request more for each fault"
    assert {key for key, _ in api.requests} == {f"Bearer {KEY}"}
    assert max(len(texts) for _, texts in api.requests) == 8

    np.testing.assert_array_equal(store.embed(TEXTS[::-1], encoder(module, api)), vectors(TEXTS[::-1]))
    assert len(api.requests) == 16, "all of them are in the store"


def test_neither_the_url_nor_the_key_nor_the_batch_is_in_a_key_and_the_model_is(module: ModuleType) -> None:
    own = module.ApiEncoder("http://a/", "tiny", DIM)
    same = module.ApiEncoder("https://b/v2", "tiny", DIM, batch=1, timeout=1.0, pause=9.0, patience=1.0)
    assert keys.fingerprint(own.spec) == keys.fingerprint(same.spec)
    for other in (module.ApiEncoder("http://a/", "large", DIM), module.ApiEncoder("http://a/", "tiny", 7)):
        assert keys.fingerprint(other.spec) != keys.fingerprint(own.spec)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (["short"], r"did not give one vector for each of 8 texts: KeyError\(7\)"),
        (["narrow"], r"gave vectors of \(5,\) values, not of 6\. Check dim"),
        (["401"], r"401 .*fault 401.*Check model and EMBEDDING_API_KEY"),
        (["429 3600"], r"fails after 1 tries \(429 .*Run again when it answers"),
        (["500"] * 100, r"fails after \d+ tries \(500 .*Run again when it answers"),
        (["drop"] * 100, r"fails after \d+ tries \(RemoteDisconnected"),
    ],
    ids=["a wrong count", "a wrong dimension", "refused", "a long wait", "always failing", "always dropping"],
)
def test_what_cannot_be_embedded_ends_the_build_and_what_was_is_kept(
    module: ModuleType, api: Api, store: Store, faults: list[str], words: str
) -> None:
    api.faults = ["none", "none", *faults]
    own = encoder(module, api, patience=0.1)
    began = time.monotonic()
    with pytest.raises(EncoderError, match=words) as caught:
        run_build(store, {"text": TEXTS}, {"text": own}, limits=Limits(window_rows=16))
    assert time.monotonic() - began < 10
    assert KEY not in str(caught.value)
    kept = {text for text, held in zip(DISTINCT, _held(store, own), strict=True) if held}
    assert kept == set(DISTINCT[:16])

    api.faults = []
    manifest = build(store, {"text": TEXTS}, {"text": own})
    np.testing.assert_array_equal(store.vectors(manifest, "text")[0], vectors(TEXTS))
    assert api.embedded == Counter(DISTINCT)


def test_a_server_that_is_gone_is_told_with_its_address(module: ModuleType, api: Api) -> None:
    own = encoder(module, api, patience=0.05)
    own.url = "http://127.0.0.1:9/v1"  # the port of discard, where nothing listens
    with pytest.raises(EncoderError, match=r"http://127\.0\.0\.1:9/v1 fails after \d+ tries \(.*refused"):
        own.encode([b"a text"])


def test_waits_double_and_a_server_that_asks_for_more_gets_it(
    module: ModuleType, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    api.faults = ["500", "500", "500", "500", "429 7", "503 " + formatdate(time.time() + 100, usegmt=True), "429 soon"]
    encoder(module, api, pause=0.1).encode([b"a text"])
    for tries in (0, 1, 2, 3, 6):
        assert 0.05 * 2**tries <= waits[tries] <= 0.1 * 2**tries
    assert waits[4] == 7
    assert 95 < waits[5] <= 100


@pytest.mark.parametrize(
    ("ending", "shard_rows"), [(signal.SIGKILL, 16), (signal.SIGINT, 1000)], ids=["killed", "interrupted"]
)
def test_a_build_that_is_stopped_goes_on_with_the_missing_texts(
    module: ModuleType, blocks: Path, api: Api, tmp_path: Path, ending: signal.Signals, shard_rows: int
) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    program = f"""
        import json
        from api_encoder import ApiEncoder
        from cachestore import open_store
        from cachestore.build import run
        from cachestore.fill import Limits
        texts = json.load(open({str(tmp_path / "texts.json")!r}))
        own = ApiEncoder({api.url!r}, "tiny", {DIM}, batch=8, pause=30.0)
        with open_store({str(tmp_path / "store")!r}) as store:
            run(store, {{"text": texts}}, {{"text": own}}, limits=Limits(window_rows=16, shard_rows={shard_rows}))
    """
    api.faults = ["none"] * 5 + ["500"]
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=blocks, stderr=subprocess.DEVNULL)
    try:
        with api.arrived:
            assert api.arrived.wait_for(lambda: len(api.requests) == 6, timeout=60)
        child.send_signal(ending)
        child.wait(timeout=30)
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        child.wait()
    assert child.returncode != 0
    with open_store(tmp_path / "store") as store:
        own = encoder(module, api)
        assert sum(_held(store, own)) == 32, "of five answers, the fifth was half of a call that did not return"
        manifest = build(store, {"text": TEXTS}, {"text": own})
        np.testing.assert_array_equal(store.vectors(manifest, "text")[0], vectors(TEXTS))
    again = {text for text, times in api.embedded.items() if times > 1}
    assert again == set(DISTINCT[32:40])


def test_the_second_block_runs_as_it_stands(blocks: Path, api: Api, tmp_path: Path) -> None:
    program = (blocks / "embed.py").read_text()
    places = {
        "https://api.openai.com/v1/embeddings": api.url,
        "text-embedding-3-small": "tiny",
        " 1536": f" {DIM}",
    }
    for place, here in places.items():
        assert place in program
        program = program.replace(place, here)
    (tmp_path / "embed.py").write_text(program)
    (tmp_path / "api_encoder.py").write_bytes((blocks / "api_encoder.py").read_bytes())
    (tmp_path / "reviews.csv").write_text("text\na text\nand more\n")
    ran = subprocess.run(
        [sys.executable, "embed.py"], cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert ran.returncode == 0, ran.stderr
    assert api.embedded == Counter(["a text", "and more", "another text"])


def test_a_config_finds_its_vectors_by_what_the_spec_declares(
    module: ModuleType, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{text},{'yes' if at % 3 else 'no'}" for at, text in enumerate(f"text {at}" for at in range(24))]
    (tmp_path / "table.csv").write_text("\n".join(["text,good", *rows]) + "\n")
    (tmp_path / "more.csv").write_text("text,good\ntext 3,yes\na new text,no\n")
    declared = {"model": "tiny", "dim": DIM}
    assert open_encoder({"type": "imported", "spec": declared}).spec == encoder(module, api).spec
    config = {
        "input_features": [{"name": "text", "type": "text", "encoder": {"type": "imported", "spec": declared}}],
        "output_features": [{"name": "good", "type": "binary"}],
        "trainer": {"epochs": 2},
    }
    with open_store("store") as store:
        build(store, "table.csv", {"text": encoder(module, api)})
        run = train(config, "table.csv", store, output="runs/first")
        assert (run.encoded, run.hits) == (0, 24)
        with pytest.raises(EncoderError, match=r"1 text has no imported vector .*'a new text'"):
            predict(run, "more.csv", store)
        store.use(encoder(module, api))
        assert len(predict(run, "more.csv", store).columns["good_predictions"]) == 2
        assert train(config, "more.csv", store, test="table.csv", output="runs/second").encoded == 0
    assert api.embedded == Counter([*(f"text {at}" for at in range(24)), "a new text"])
    exported = CliRunner().invoke(app, ["export", "table", "-o", "table.parquet", "--store", "store"])
    assert exported.exit_code == 0, exported.output


def _held(store: Store, own: Any) -> list[bool]:
    """Of each distinct text, whether the store holds its vector."""
    return [not store.missing([keys.key(keys.fingerprint(own.spec), text.encode())]) for text in DISTINCT]

"""FORMAT.md is the contract: what it says how to read a store without this package is run here, on a store."""

from __future__ import annotations

import json
import re
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import cachestore
from cachestore import open_store
from cachestore.build import run
from cachestore.fill import Limits
from cachestore.keys import canonical, fingerprint
from tests.store.counting import CountingEncoder

PAGE = Path(cachestore.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture
def made(tmp_path):
    """A store with rows that have no vector, and shards of two encoders."""
    texts = [f"text {row}" for row in range(90)] + [None, "text 3"]
    with open_store(tmp_path / "store") as store:
        for name, encoder in (("other", CountingEncoder(other=1)), ("reviews", CountingEncoder())):
            run(store, {"text": texts}, {"text": encoder}, name=name, limits=Limits(shard_rows=40, window_rows=20))
        store.tag("reviews", "v1")
        vectors, mask = store.vectors("reviews", "text")
    return tmp_path / "store", vectors, mask


def test_the_page_has_a_shell_block_and_two_of_python():
    assert [kind for kind, _ in BLOCKS] == ["sh", "python", "python"]


def test_the_digests_are_checked_by_sha256sum(made):
    root, _, _ = made
    check = BLOCKS[0][1]
    assert subprocess.run(["sh", "-c", check], cwd=root, check=False).returncode == 0
    victim = next(root.glob("shards/*/*.arrow"))
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = subprocess.run(["sh", "-c", check], cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert victim.stem in done.stdout


def test_vectors_are_read_by_pyarrow_and_lmdb_alone(made, monkeypatch):
    root, vectors, mask = made
    monkeypatch.chdir(root)
    scope: dict[str, Any] = {"text": "text 3"}
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "FORMAT.md", "exec"), scope)
    assert [row is not None for row in scope["rows"]] == mask.tolist()
    np.testing.assert_array_equal([row for row in scope["rows"] if row is not None], vectors[mask])
    np.testing.assert_array_equal(scope["vector"], vectors[3])


def test_identities_are_as_the_page_says(made):
    root, _, _ = made
    spec = CountingEncoder().spec
    assert fingerprint(spec) == sha256(b"cachestore.fingerprint.1" + canonical(spec)).digest()
    sealed = [root / "store.json", root / "tags" / "reviews@v1.json"]
    for text in [*(path.read_text() for path in sealed), (root / "names" / "reviews.jsonl").read_text()]:
        content = json.loads(text)
        check = content.pop("check")
        plain = json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")
        assert check == xxhash.xxh3_64_hexdigest(plain)


def test_everything_in_a_store_is_on_the_page(made):
    root, _, _ = made
    listed = set(re.findall(r"^    ([a-z]+)[./]", PAGE, re.M))
    assert {entry.name.split(".")[0] for entry in root.iterdir()} <= listed

"""B3 25, 30: a store that somebody else made, to harm who reads it. Nothing outside it is read, written or run; memory stays bounded."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachestore import filesystem, open_store
from cachestore.errors import StoreError
from cachestore.keys import fingerprint
from tests.faults import damage, readers
from tests.faults.damage import ask, command
from tests.faults.record import Record
from tests.faults.test_read_only_disk import PERMISSION, Place, refusal
from tests.faults.warm import Warm
from tests.store import tiny_models
from tests.store.counting import CountingEncoder

Recording = Callable[[str], Record]
MEMORY = 600 << 20
"""What a process may take that reads a small hostile store; the libraries alone take some 200 MB."""


def head(root: Path) -> Any:
    """The newest manifest, as an object."""
    identity = json.loads((root / "names" / "table.jsonl").read_text().splitlines()[-1])["manifest"]
    return json.loads((root / "manifests" / identity[:2] / f"{identity}.json").read_text())


def lead_to(root: Path, content: bytes) -> None:
    """Make the name lead to a manifest of those bytes, with the right digest: an enemy can compute one as well."""
    identity = sha256(content).hexdigest()
    place = root / "manifests" / identity[:2]
    place.mkdir(exist_ok=True)
    (place / f"{identity}.json").write_bytes(content)
    log = root / "names" / "table.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[-1]["manifest"] = identity
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _manifest(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def harm(root: Path) -> None:
        content = head(root)
        change(content)
        lead_to(root, json.dumps(content, sort_keys=True, separators=(",", ":")).encode())

    return harm


def _log(**changes: Any) -> Callable[[Path], object]:
    def harm(root: Path) -> None:
        path = root / "names" / "table.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**line, **changes}) + "\n" for line in lines))

    return harm


def _chunk_id(identity: str) -> Callable[[Path], object]:
    return _manifest(lambda content: content["chunks"][0].update(id=identity))


def _column(**changes: Any) -> Callable[[Path], object]:
    def change(content: Any) -> None:
        column = content["columns"][0]
        column.update(changes)
        if isinstance(column["spec"], dict):
            column["fingerprint"] = fingerprint(column["spec"]).hex()

    return _manifest(change)


def _symlink(pattern: str) -> Callable[[Path], object]:
    """Move something out of the store, and leave a link that leads to it."""

    def harm(root: Path) -> None:
        victim = sorted(root.glob(pattern))[0]
        outside = root.parent / "outside" / victim.name
        outside.parent.mkdir()
        shutil.move(victim, outside)
        victim.symlink_to(outside)

    return harm


def _fifo(pattern: str) -> Callable[[Path], object]:
    def harm(root: Path) -> None:
        victim = sorted(root.glob(pattern))[0]
        victim.unlink()
        os.mkfifo(victim)

    return harm


def _device(pattern: str) -> Callable[[Path], object]:
    def harm(root: Path) -> None:
        victim = sorted(root.glob(pattern))[0]
        victim.unlink()
        victim.symlink_to("/dev/zero")

    return harm


def _huge(pattern: str) -> Callable[[Path], object]:
    """A sparse file of a terabyte in the place of a small one."""
    return lambda root: damage.cut(sorted(root.glob(pattern))[0], 1 << 40)


HARM: dict[str, Callable[[Path], object]] = {
    "chunk ../../x": _chunk_id("../../../../etc/passwd"),
    "chunk /x": _chunk_id("/etc/passwd"),
    "chunk of 64 dots": _chunk_id("." * 64),
    "log to ../../x": _log(manifest="../../../etc/passwd"),
    "log to a number": _log(manifest=7),
    "log without provenance": _log(provenance=None),
    "log of huge versions": _log(version=10**4000),
    "a terabyte of rows": _manifest(
        lambda content: (content.update(rows=1 << 40), content["chunks"][0].update(rows=1 << 40))
    ),
    "negative rows": _manifest(lambda content: (content.update(rows=-5), content["chunks"][0].update(rows=-5))),
    "a million chunks": _manifest(lambda content: content.update(chunks=content["chunks"] * 1_000_000)),
    "dim of a gigabyte": _column(dim=1 << 29),
    "dim of one": _column(dim=1),
    "dim of nothing": _column(dim=0),
    "dim of a text": _column(dim="8"),
    "dtype of objects": _column(spec={"dtype": "object"}),
    "dtype of pickles": _column(spec={"dtype": "O", "kind": "counting"}),
    "spec of another": _column(spec={"dtype": "float16", "kind": "other"}),
    "no spec": _column(spec=None),
    "columns of nothing": _manifest(lambda content: content.update(columns={})),
    "deep JSON": lambda root: lead_to(root, b"[" * 200_000),
    "deep header": lambda root: (root / "store.json").write_bytes(b"[" * 200_000),
    "deep log": lambda root: (root / "names" / "table.jsonl").write_bytes(b'{"a":' * 200_000),
    "deep tag": lambda root: (root / "tags" / "table@first.json").write_bytes(b"[" * 200_000),
    "a number of a million digits": lambda root: lead_to(root, b'{"format":' + b"9" * 1_000_000 + b"}"),
    "header of a list": lambda root: (root / "store.json").write_text("[1, 2]"),
    "header of infinity": lambda root: (root / "store.json").write_text('{"format": Infinity, "features": []}'),
    "linked shard": _symlink("shards/*/*.arrow"),
    "linked chunk": _symlink("chunks/*/*.arrow"),
    "linked manifest": _symlink("manifests/*/*.json"),
    "linked log": _symlink("names/*.jsonl"),
    "linked header": _symlink("store.json"),
    "linked bucket": _symlink("shards/*"),
    "linked folder": _symlink("shards"),
    "linked index": _symlink("index"),
    "linked data.mdb": _symlink("index/data.mdb"),
    "pipe for a shard": _fifo("shards/*/*.arrow"),
    "pipe for a log": _fifo("names/*.jsonl"),
    "pipe for the header": _fifo("store.json"),
    "pipe for data.mdb": _fifo("index/data.mdb"),
    "device for a shard": _device("shards/*/*.arrow"),
    "device for the header": _device("store.json"),
    "terabyte header": _huge("store.json"),
    "terabyte log": _huge("names/*.jsonl"),
    "terabyte manifest": _huge("manifests/*/*.json"),
    "terabyte shard": _huge("shards/*/*.arrow"),
    "terabyte chunk": _huge("chunks/*/*.arrow"),
}


def read_bounded(folder: str) -> dict[str, Any]:
    """``readers.read``, and the memory that it took."""
    facts: dict[str, Any] = readers.read(folder)
    return {**facts, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}


@pytest.mark.parametrize("harm", HARM)
def test_a_hostile_store_is_refused_within_bounds(warm: Warm, folder: Path, record: Recording, harm: str) -> None:
    place = damage.sound_store(warm, folder)
    HARM[harm](place / "store")
    with record("25 hostile stores") as trial:
        ended = warm.run("tests.faults.test_hostile_stores:read_bounded", folder=str(place), timeout=30)
        assert ended.code in (0, 3, 4), ended
        if ended.code == 0:
            facts = ended.value
            trial.trial(wrong=facts["wrong"])
            assert facts["wrong"] == 0, facts
            assert facts["memory"] < MEMORY, facts
        lines = [
            [*line, "--store", str(place / "store")] for line in (["verify"], ["ls"], ["stats"], ["gc", "--dry-run"])
        ]
        done = warm.run("tests.faults.readers:commands", lines=lines)
        assert done.code == 0, done
        assert set(done.value) <= {0, 3, 4}, done
        assert "Traceback" not in done.err, done.err
        trial.trial()


def test_a_link_to_outside_is_not_written_through(warm: Warm, folder: Path, record: Recording) -> None:
    """Shards moved to another disk by a link are read; nothing is written, moved or deleted where the link leads."""
    place = damage.sound_store(warm, folder)
    with record("25 hostile stores") as trial:
        for name in ("shards", "chunks", "manifests", "names", "tags"):
            copy = damage.copied(place, folder / "copy")
            outside = folder / f"outside-{name}"
            shutil.move(copy / "store" / name, outside)
            (copy / "store" / name).symlink_to(outside)
            before = damage.digests(outside)
            for line in (
                ["gc", "--grace", "0", "--unreferenced-older-than", "0"],
                ["forget", "--text", "text 3"],
                ["repair"],
                ["build", copy / "table.csv", "--column", "text", "--encoder", "hashing"],
                ["tag", "table", "later"],
            ):
                ended = command(warm, *line, "--store", copy / "store")
                assert ended.code in (0, 2, 3, 4), (name, line, ended)
                assert "Traceback" not in ended.err, (name, line, ended.err)
            assert damage.digests(outside) == before, f"{name} was changed through a link"
            trial.trial()


def test_a_shard_with_a_second_name_elsewhere_is_served_and_its_change_is_found(
    warm: Warm, folder: Path, record: Recording
) -> None:
    """A hard link, as copying by `cp -l` makes: whoever writes through the other name damages the shard."""
    place = damage.sound_store(warm, folder)
    victim = damage.files_of(place / "store", "shard")[0]
    os.link(victim, folder / "another-name")
    with record("25 hostile stores") as trial:
        assert ask(warm, "read", place).facts["served"] == readers.VECTORS
        damage.flip(folder / "another-name", (victim.stat().st_size // 2) * 8)
        facts = ask(warm, "read", place).facts
        assert facts["wrong"] == 0
        assert ask(warm, "verified", place).facts["damage"]
        trial.trial(wrong=facts["wrong"])


def test_names_of_files_are_never_shown_raw(warm: Warm, folder: Path) -> None:
    """A file's name can hold what a terminal takes for an order."""
    place = damage.sound_store(warm, folder)
    log = place / "store" / "names" / "table.jsonl"
    for name in ("\x1b[2J", "a\nerror: all is lost", "..", "a\udcff"):
        (log.parent / f"{name}.jsonl").write_bytes(log.read_bytes())
    (place / "store" / "tags" / "\x1b[2J@x.json").write_text("{}")
    for line in (["ls"], ["ls", "--json"], ["verify"], ["log", "\x1b[2J"], ["build", place / "no\x1b[2J.csv"]):
        ended = command(warm, *line, "--store", place / "store")
        assert ended.code in (0, 2, 3, 4), (line, ended)
        assert "\x1b" not in ended.out + ended.err, (line, ended)
        assert "\nerror: all is lost" not in ended.out + ended.err, (line, ended)


@pytest.mark.parametrize(
    "closed", [".", "names", "manifests", "chunks", "shards", "tags", "index", "index/data.mdb", "store.json"]
)
def test_a_store_that_may_not_be_read_is_told_in_one_line(warm: Warm, folder: Path, closed: str) -> None:
    if refused := refusal(PERMISSION):
        pytest.skip(refused)
    place = damage.sound_store(warm, folder)
    victim = place / "store" / closed
    mode = victim.stat().st_mode
    lines: list[list[object]] = [
        *(["verify"], ["ls"], ["log", "table"], ["tag"], ["diff", "table", "table"], ["stats"]),
        *(["gc", "--dry-run"], ["gc"], ["repair", "--dry-run"], ["forget", "--text", "text 3", "--dry-run"]),
        ["export", "table", "--column", "text", "--output", folder / "table.npy"],
        ["build", place / "table.csv", "--column", "text", "--encoder", "hashing"],
    ]
    victim.chmod(0)
    try:
        found = Place(place / "store", PERMISSION).run(*lines)
    finally:
        victim.chmod(mode)
    for line, (code, out, err) in zip(lines, found, strict=True):
        assert code in ({3} if closed in (".", "store.json") else {0, 3, 4}), (line, code, out, err)
        assert "Traceback" not in err, (line, err)
        errors = [text for text in err.splitlines() if text.startswith("error:")]
        assert len(errors) == (code == 3), (line, err)
        assert not errors or str(place / "store") in errors[0], (line, err)


# -- models and settings from elsewhere --------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes the file that it names."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("models") / "bert")


def _code(model: Path, canary: Path) -> None:
    (model / "evil.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass Evil: pass\n")


def _auto_map(model: Path, canary: Path) -> None:
    _code(model, canary)
    tiny_models.edit_json(model / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    tiny_models.edit_json(
        model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, tokenizer_class="Evil"
    )


def _unknown_type(model: Path, canary: Path) -> None:
    _auto_map(model, canary)
    tiny_models.edit_json(model / "config.json", model_type="evil")


def _pickles(model: Path, canary: Path) -> None:
    for name in ("pytorch_model.bin", "model.pt", "model.pth", "training_args.bin", "optimizer.pt", "vocab.pkl"):
        (model / name).write_bytes(pickle.dumps(Bomb(canary)))


def _only_pickles(model: Path, canary: Path) -> None:
    _pickles(model, canary)
    (model / "model.safetensors").unlink()


def _named_safetensors(model: Path, canary: Path) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps(Bomb(canary)))


def _pickled_modules(model: Path, canary: Path) -> None:
    _code(model, canary)
    tiny_models.write_json(model / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}])


def _header(length: int, body: bytes = b"") -> Callable[[Path, Path], None]:
    def harm(model: Path, canary: Path) -> None:
        (model / "model.safetensors").write_bytes(struct.pack("<Q", length) + body)

    return harm


MODELS: dict[str, Callable[[Path, Path], None]] = {
    "remote code": _auto_map,
    "remote code of an unknown type": _unknown_type,
    "pickles beside the weights": _pickles,
    "pickles only": _only_pickles,
    "a pickle that says it is safetensors": _named_safetensors,
    "modules of its own": _pickled_modules,
    "a header of 2^63 bytes": _header((1 << 63) - 1),
    "a header of a terabyte": _header(1 << 40, b"{}"),
    "a deep header of 50 MB": _header(50_000_000, b'{"a":' * 10_000_000),
    "a tensor of 2^62 rows": _header(
        70, b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}'[:70]
    ),
    "a deep config": lambda model, canary: (model / "config.json").write_bytes(b"[" * 500_000),
    "a wide config": lambda model, canary: tiny_models.edit_json(model / "config.json", hidden_size=1 << 60),
}


def embed_with(folder: str, harms: list[str]) -> dict[str, Any]:
    """Embed two texts with each of these models; tells what it said, and the memory it took beyond that of the libraries."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from cachestore.errors import CachestoreError

    said = {}
    for number, harm in enumerate(harms):
        settings = {
            "type": "auto_transformer",
            "pretrained_model_name_or_path": str(Path(folder) / f"model-{number}"),
            "precision": "float32",
        }
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            with open_store(Path(folder) / "store") as store:
                answer = f"embedded: {store.embed(['the parcel', 'arrived'], settings).shape}"
        except CachestoreError as error:
            answer = f"{type(error).__name__}: {error}"
        said[harm] = {"said": answer, "MB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10}
    return said


def test_a_hostile_model_runs_no_code_and_takes_no_memory(
    warm: Warm, folder: Path, saved: Path, record: Recording
) -> None:
    for number, harm in enumerate(MODELS):
        MODELS[harm](Path(shutil.copytree(saved, folder / f"model-{number}")), folder / f"canary-{number}")
    with record("25 hostile models, configs and data") as trial:
        said = warm.run(
            "tests.faults.test_hostile_stores:embed_with", folder=str(folder), harms=list(MODELS), timeout=100
        ).facts
        for number, harm in enumerate(MODELS):
            assert not (folder / f"canary-{number}").exists(), f"code of the model was run: {harm}"
            sound = harm in ("remote code", "pickles beside the weights")
            assert said[harm]["said"].startswith("embedded" if sound else "EncoderError"), (harm, said[harm])
            assert said[harm]["MB"] < 400, (harm, said[harm])
            trial.trial()


@pytest.mark.parametrize("kind", ["npy", "npz", "pickle in a .parquet"])
def test_imported_vectors_run_no_code(warm: Warm, folder: Path, record: Recording, kind: str) -> None:
    canary = folder / "canary"
    (folder / "table.csv").write_text("text\na\nb\n")
    (folder / "spec.yaml").write_text("dim: 8\nmodel: mine\n")
    vectors = folder / ("vectors.npy" if kind == "npy" else "vectors.parquet" if "parquet" in kind else "vectors.npz")
    if kind == "npy":
        np.save(vectors, np.array([Bomb(canary), Bomb(canary)], dtype=object), allow_pickle=True)
    elif kind == "npz":
        np.savez(vectors, a=np.array([Bomb(canary)], dtype=object))
    else:
        vectors.write_bytes(pickle.dumps(Bomb(canary)))
    with record("25 hostile models, configs and data") as trial:
        line = ["import", vectors, "--spec", folder / "spec.yaml", "--data", folder / "table.csv"]
        ended = command(warm, *line, "--store", folder / "store")
        assert ended.code == 2, ended
        assert not canary.exists()
        trial.trial()


YAML = {
    "aliases": "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)),
    "merges": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30)),
    "python/object": "a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [CANARY]]",
    "python/name": "a: !!python/name:os.system ''",
    "depth": "[" * 1_000_000,
    "size": "a: " + "x" * 30_000_000,
    "anchors": "a: &a [*a]",
    "a number of a million digits": "a: " + "9" * 1_000_000,
}


@pytest.mark.parametrize("kind", YAML)
def test_hostile_yaml_is_refused_by_every_command_that_reads_it(
    warm: Warm, folder: Path, record: Recording, kind: str
) -> None:
    canary = folder / "canary"
    path = folder / "config.yaml"
    path.write_text(YAML[kind].replace("CANARY", str(canary)))
    (folder / "table.csv").write_text("text\na\nb\n")
    np.save(folder / "vectors.npy", np.ones((2, 8), np.float32))
    with record("25 hostile models, configs and data") as trial:
        for line in (
            ["train", folder / "table.csv", "-c", path],
            ["build", folder / "table.csv", "-c", path],
            ["build", folder / "table.csv", "--column", "text", "--encoder", YAML[kind][:100_000]],
            ["explain", folder / "table.csv", "-c", path],
            ["import", folder / "vectors.npy", "--spec", path, "--data", folder / "table.csv"],
        ):
            began = time.monotonic()
            ended = command(warm, *line, "--store", folder / "store")
            assert ended.code == 2, (line, ended)
            assert time.monotonic() - began < 10, line
            assert len(ended.err) < 5000, "the fault is shown, not the file"
            trial.trial()
    assert not canary.exists()


# -- where a store lies ------------------------------------------------------------------------------------------------


def mounted(path: Path, kind: str) -> list[str]:
    """The lines of a mount table in which the file system of a path is of that type."""
    device = path.stat().st_dev
    return [
        "22 1 0:999 / / rw - ext4 /dev/sda1 rw",
        f"23 22 {os.major(device)}:{os.minor(device)} / /mnt/with\\040space rw,relatime shared:1 - {kind} server:/export rw",
        "24 22 0:998 / /proc rw - proc proc rw",
    ]


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuse.s3fs", "afs"])
def test_a_network_file_system_is_refused_unless_the_user_knows_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Recording, kind: str
) -> None:
    monkeypatch.setattr(filesystem, "_mounts", lambda: mounted(tmp_path, kind))
    with record("30 a network file system") as trial:
        with pytest.raises(StoreError, match=rf"network file system \({kind}\).*--store"):
            open_store(tmp_path / "store")
        monkeypatch.setenv(filesystem.OVERRIDE, "1")
        with pytest.warns(UserWarning, match=kind), open_store(tmp_path / "store") as store:
            store.embed(["a"], CountingEncoder())
        monkeypatch.delenv(filesystem.OVERRIDE)
        with open_store(tmp_path / "store", mode="r") as store:
            store.embed(["a"], CountingEncoder())
        trial.trial()


@pytest.mark.parametrize("kind", ["lustre", "ceph", "9p", "glusterfs"])
def test_a_cluster_file_system_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(filesystem, "_mounts", lambda: mounted(tmp_path, kind))
    with pytest.warns(UserWarning, match=rf"{kind}.*one machine at a time"):
        open_store(tmp_path / "store").close()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuse.lxcfs"])
def test_a_local_disk_is_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(filesystem, "_mounts", lambda: mounted(tmp_path, kind))
    open_store(tmp_path / "store").close()


@pytest.mark.parametrize("lines", [[], ["nonsense"], ["1 2 3 4 - "], ["\udcff 1 0:1 / / rw - nfs"], [""]])
def test_a_mount_table_that_says_nothing_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(filesystem, "_mounts", lambda: lines)
    open_store(tmp_path / "store").close()


def test_a_store_that_everybody_may_write_to_is_warned_of(warm: Warm, folder: Path, record: Recording) -> None:
    place = damage.sound_store(warm, folder)
    (place / "store").chmod(0o777)
    with record("25 hostile stores") as trial:
        with pytest.warns(UserWarning, match=r"Everybody may write.*chmod o-w"):
            open_store(place / "store").close()
        line = ["build", place / "table.csv", "--column", "text", "--encoder", "hashing", "--store", place / "store"]
        ended = command(warm, *line)
        assert (ended.code, ended.err.count("Everybody may write")) == (0, 1), ended
        trial.trial()

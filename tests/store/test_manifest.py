"""Manifests and names: ids follow content, chunks are shared, logs only grow."""

from __future__ import annotations

import os

import numpy as np
import pytest

from cachestore import manifest as manifests
from cachestore.errors import DamageError, ManifestNotFound, UsageError
from cachestore.keys import fingerprint, keys
from cachestore.manifest import MISSING, PRESENT, SKIPPED, ManifestColumn

SPEC = {"type": "test", "dtype": "float16"}
COLUMN = ManifestColumn("text", fingerprint(SPEC), SPEC, 4)


def rows_of(count, offset=0):
    names = keys(COLUMN.fingerprint, [str(row).encode() for row in range(offset, offset + count)])
    return np.frombuffer(b"".join(names), "V32").copy(), np.zeros(count, np.uint8)


def written(root, *chunks, column=COLUMN):
    listed = [
        (manifests.write_chunk(root, [column.name], [names], [reasons]), len(reasons)) for names, reasons in chunks
    ]
    return manifests.write_manifest(root, [column], listed)


def column_of(root, manifest):
    names, reasons = zip(*manifests.read_chunks(root, manifest, "text"), strict=True)
    return np.concatenate(names), np.concatenate(reasons)


def test_round_trip_with_reasons(tmp_path):
    names, reasons = rows_of(20)
    reasons[[2, 5]] = MISSING, SKIPPED
    names[[2, 5]] = np.zeros(2, "V32")
    made = written(tmp_path, (names[:12], reasons[:12]), (names[12:], reasons[12:]))
    read = manifests.read_manifest(tmp_path, made.id)
    assert read == made
    assert read.rows == 20
    got_names, got_reasons = column_of(tmp_path, read)
    assert got_names.tolist() == names.tolist()
    assert got_reasons.tolist() == reasons.tolist()


def test_the_id_is_a_function_of_content_alone(tmp_path):
    first = written(tmp_path / "a", rows_of(10))
    again = written(tmp_path / "b", rows_of(10))
    assert first.id == again.id
    assert written(tmp_path / "a", rows_of(10, offset=1)).id != first.id
    assert written(tmp_path / "a", rows_of(11)).id != first.id
    renamed = ManifestColumn("other", COLUMN.fingerprint, SPEC, 4)
    assert written(tmp_path / "a", rows_of(10), column=renamed).id != first.id


def test_missing_and_skipped_rows_give_different_ids(tmp_path):
    ids = set()
    for reason in (PRESENT, MISSING, SKIPPED):
        names, reasons = rows_of(3)
        names[1] = np.zeros((), "V32")
        reasons[1] = reason
        ids.add(manifests.chunk_id(["text"], [names], [reasons]))
    assert len(ids) == 3


def test_damage_to_a_manifest_or_a_chunk_is_found(tmp_path):
    made = written(tmp_path, rows_of(10))
    for path in [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.arrow")]:
        sound = path.read_bytes()
        path.chmod(0o644)
        for at in range(0, len(sound), max(1, len(sound) // 60)):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
            try:
                names, reasons = column_of(tmp_path, manifests.read_manifest(tmp_path, made.id))
            except DamageError:
                continue
            # a flip in padding or in metadata that we do not use changes nothing that is served
            assert names.tolist() == rows_of(10)[0].tolist()
            assert not reasons.any()
            assert path.suffix == ".arrow"
        path.write_bytes(sound)


def test_unknown_references_say_what_there_is(tmp_path):
    with pytest.raises(ManifestNotFound, match="holds no names yet"):
        manifests.read_log(tmp_path, "reviews")
    made = written(tmp_path, rows_of(2))
    manifests.append_version(tmp_path, "reviews", made, "now", {})
    with pytest.raises(ManifestNotFound, match="did you mean 'reviews'"):
        manifests.read_log(tmp_path, "review")
    with pytest.raises(ManifestNotFound, match="no manifest"):
        manifests.read_manifest(tmp_path, "0" * 64)
    with pytest.raises(UsageError, match="not a manifest id"):
        manifests.read_manifest(tmp_path, "../../etc/passwd")
    with pytest.raises(UsageError, match=r"no column 'txt'; did you mean 'text'"):
        made.column("txt")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a" * 129, "a b", "0" * 64, "ä" * 120, "_x"])
def test_names_that_could_leave_their_folder_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be a name"):
        manifests.read_log(tmp_path, name)


def test_a_log_only_grows(tmp_path):
    first, second = written(tmp_path, rows_of(2)), written(tmp_path, rows_of(3))
    for target, version in [(first, 1), (second, 2), (first, 3)]:
        assert manifests.append_version(tmp_path, "reviews", target, "now", {"why": "test"}).version == version
    log = manifests.read_log(tmp_path, "reviews")
    assert [(line.manifest, line.parent) for line in log] == [
        (first.id, None),
        (second.id, first.id),
        (first.id, second.id),
    ]
    assert manifests.names(tmp_path) == ["reviews"]


def test_a_damaged_log_says_so(tmp_path):
    manifests.append_version(tmp_path, "reviews", written(tmp_path, rows_of(2)), "now", {})
    path = tmp_path / "names" / "reviews.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamageError, match="cachestore repair"):
        manifests.read_log(tmp_path, "reviews")


def test_what_is_there_already_is_not_written_again_but_is_of_use_now(tmp_path):
    made = written(tmp_path, rows_of(3))
    path = manifests.manifest_path(tmp_path, made.id)
    os.utime(path, (1, 1))
    inode = path.stat().st_ino
    assert written(tmp_path, rows_of(3)) == made
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > 1, "gc goes by it"
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    assert written(tmp_path, rows_of(3)) == made
    assert manifests.read_manifest(tmp_path, made.id) == made

"""Cells of an image column: which files are read, what a payload is, and what is read again."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from cachestore import open_store, picture_cells, picture_files
from cachestore.build import run
from cachestore.errors import DataError
from cachestore.explain import explain
from cachestore.keys import fingerprint, key
from cachestore.manifest import MISSING, PRESENT, SKIPPED
from cachestore.plan import plan
from tests.store.counting import CountingEncoder
from tests.store.pictures import CountingPictures


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "data"
    (made / "photos").mkdir(parents=True)
    for name in "abc":
        (made / "photos" / f"{name}.jpg").write_bytes(b"picture " + name.encode())
    return made


def table(folder, cells):
    path = folder / "t.csv"
    path.write_text("n,image\n" + "".join(f"{row},{cell}\n" for row, cell in enumerate(cells)))
    return path


def aged(folder):
    """Files that are old enough to be remembered."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))


@pytest.fixture
def settled(monkeypatch):
    monkeypatch.setattr("cachestore.digests._SETTLED_SECONDS", -1.0)


@pytest.fixture
def reads(monkeypatch):
    """The files read, in no order."""
    found = []
    read = picture_files.read

    def counting(path):
        found.append(os.path.basename(path).decode())
        return read(path)

    monkeypatch.setattr(picture_files, "read", counting)
    return found


def test_a_path_counts_from_the_data_file_and_its_payload_is_the_files_bytes(store, folder, tmp_path):
    (tmp_path / "far.jpg").write_bytes(b"picture far")
    encoder = CountingPictures()
    built = run(store, table(folder, ["photos/a.jpg", "", tmp_path / "far.jpg", "photos/a.jpg"]), {"image": encoder})
    assert built.skipped_cells == ()
    assert encoder.seen == [b"picture a", b"picture far"]
    assert store.reasons(built.manifest, "image").tolist() == [PRESENT, MISSING, PRESENT, PRESENT]
    assert store.missing([key(fingerprint(encoder.spec), b"picture a")]) == []


def test_bytes_paths_and_hugging_face_structs_give_the_same_keys(store, folder):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    there = pa.table(
        {
            "struct": pa.array(
                [
                    {"bytes": b"picture a", "path": "nowhere.jpg"},
                    {"bytes": None, "path": "photos/b.jpg"},
                    None,
                    {"bytes": None, "path": None},
                ],
                struct,
            ),
            "bytes": pa.array([b"picture a", b"picture b", None, None], pa.large_binary()),
            "path": pa.array(["photos/a.jpg", "photos/b.jpg", None, None]).dictionary_encode(),
        }
    )
    parquet.write_table(there, folder / "t.parquet")
    encoder = CountingPictures()
    for column in there.column_names:
        built = run(store, folder / "t.parquet", {column: encoder})
        assert store.reasons(built.manifest, column).tolist() == [PRESENT, PRESENT, MISSING, MISSING], column
    assert encoder.seen == [b"picture a", b"picture b"]


def test_what_is_no_readable_file_in_the_folder_is_skipped_with_the_reason(store, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "MAX_BYTES", 1000)
    (tmp_path / "secret.jpg").write_bytes(b"picture secret")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "near.jpg").symlink_to("photos/a.jpg")
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "empty.jpg").touch()
    (folder / "large.jpg").write_bytes(b"picture" * 1000)
    (folder / "text.jpg").write_bytes(b"<html>")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(folder)
        listening.bind("socket.jpg")
        why = {
            "near.jpg": None,
            "photos/../photos/b.jpg": None,
            "link.jpg": "leads out of the folder",
            "../secret.jpg": "leads out of the folder",
            "out/secret.jpg": "leads out of the folder",
            "out/..": "leads out of the folder",
            "loop.jpg": "cannot be read",
            "gone.jpg": "does not exist",
            "photos/a.jpg/b.jpg": "does not exist",
            "photos": "is a directory",
            ".": "is a directory",
            "empty.jpg": "is empty",
            "large.jpg": "over the limit",
            "text.jpg": "is not a picture",
            "pipe.jpg": "is a pipe, socket or device",
            "socket.jpg": "is a pipe, socket or device",
            "/dev/zero": "is a pipe, socket or device",
            "/dev/tty": "is a pipe, socket or device",
            "https://example.org/a.jpg": "is a URL",
            '""': "is an empty path",
            "photos/c.jpg": None,
        }
        built = run(store, table(folder, why), {"image": CountingPictures()})
    told = {cell.row: cell.why for cell in built.skipped_cells}
    for row, (cell, expected) in enumerate(why.items()):
        if expected is None:
            assert row not in told
        else:
            assert expected in told.pop(row), cell
            assert cell == '""' or repr(cell) in next(c.why for c in built.skipped_cells if c.row == row)
    assert told == {}
    reasons = [PRESENT if expected is None else SKIPPED for expected in why.values()]
    assert store.reasons(built.manifest, "image").tolist() == reasons


def test_a_file_that_may_not_be_read_is_skipped(store, folder):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / "photos/a.jpg").chmod(0)
    built = run(store, table(folder, ["photos/a.jpg", "photos/b.jpg"]), {"image": CountingPictures()})
    assert [(cell.row, cell.why) for cell in built.skipped_cells] == [(0, "'photos/a.jpg' may not be read")]


def test_an_edited_picture_has_another_key_though_the_data_is_the_same_and_a_moved_one_has_its_own(store, folder):
    path = table(folder, ["photos/a.jpg", "photos/b.jpg"])
    first = run(store, path, {"image": CountingPictures()})
    (folder / "photos/a.jpg").write_bytes(b"picture A")
    encoder = CountingPictures()
    second = run(store, path, {"image": encoder})
    assert encoder.seen == [b"picture A"]
    assert second.manifest.id != first.manifest.id
    (folder / "photos/b.jpg").rename(folder / "moved.jpg")
    encoder = CountingPictures()
    run(store, table(folder, ["photos/a.jpg", "moved.jpg"]), {"image": encoder})
    assert encoder.seen == []


def test_a_warm_build_reads_no_picture_and_one_that_was_touched_is_read_again(store, folder, settled, reads):
    path = table(folder, ["photos/a.jpg", "photos/b.jpg", "photos/c.jpg"])
    first = run(store, path, {"image": CountingPictures()})
    assert sorted(reads) == ["a.jpg", "b.jpg", "c.jpg"]
    reads.clear()
    again = run(store, path, {"image": CountingPictures()})
    assert (again.manifest.id, again.counts.hits, reads) == (first.manifest.id, 3, [])
    os.utime(folder / "photos/b.jpg")
    run(store, path, {"image": CountingPictures()})
    assert reads == ["b.jpg"]
    reads.clear()
    run(store, path, {"image": CountingPictures(layer=2)})
    assert sorted(reads) == ["a.jpg", "b.jpg", "c.jpg"], "another encoder knows none of them"


def test_a_file_younger_than_the_clock_can_tell_is_read_again(store, folder, reads):
    path = table(folder, ["photos/a.jpg"])
    run(store, path, {"image": CountingPictures()})
    run(store, path, {"image": CountingPictures()})
    assert reads == ["a.jpg", "a.jpg"]


def test_a_picture_that_is_remembered_but_not_stored_is_read_to_be_encoded(folder, tmp_path, settled, reads):
    path = table(folder, ["photos/a.jpg"])
    with open_store(tmp_path / "store") as store:
        assert plan(store, path, {"image": CountingPictures()}).counts.encoded == 1
        reads.clear()
        encoder = CountingPictures()
        run(store, path, {"image": encoder})
        assert encoder.seen == [b"picture a"]
        assert reads == ["a.jpg"]


def test_a_picture_that_changes_between_its_key_and_its_encoding_ends_the_build(folder, tmp_path, settled, monkeypatch):
    path = table(folder, ["photos/a.jpg"])
    with open_store(tmp_path / "store") as store:
        plan(store, path, {"image": CountingPictures()})
        monkeypatch.setattr(picture_files, "read", lambda path: (b"picture z", os.stat(path)))
        with pytest.raises(DataError, match="changed while it was read"):
            run(store, path, {"image": CountingPictures()})


def test_blocks_are_small_and_rows_keep_their_order(store, folder, monkeypatch):
    monkeypatch.setattr(picture_cells, "BLOCK_BYTES", 20)
    monkeypatch.setattr(picture_cells, "BLOCK_ROWS", 5)
    monkeypatch.setattr(sys.modules["cachestore.build"], "CHUNK_ROWS", 7)
    cells = []
    for row in range(23):
        (folder / f"{row}.jpg").write_bytes(f"picture {row}".encode())
        cells.append(f"{row}.jpg" if row % 6 else "gone.jpg")
    encoder = CountingPictures()
    built = run(store, table(folder, cells), {"image": encoder})
    assert encoder.seen == [f"picture {row}".encode() for row in range(23) if row % 6]
    assert [cell.row for cell in built.skipped_cells] == [0, 6, 12, 18]


def test_every_refused_row_names_its_own_file(store, folder, monkeypatch):
    monkeypatch.setattr(sys.modules["cachestore.build"], "CHUNK_ROWS", 3)
    for name in "xy":
        (folder / f"{name}.jpg").write_bytes(b"<html>")
    built = run(
        store, table(folder, ["photos/a.jpg", "x.jpg", "y.jpg", "photos/b.jpg", "y.jpg"]), {"image": CountingPictures()}
    )
    assert [(cell.row, cell.why) for cell in built.skipped_cells] == [
        (1, "'x.jpg' is not a picture"),
        (2, "'y.jpg' is not a picture"),
        (4, "'y.jpg' is not a picture"),
    ]


def test_a_file_of_pictures_in_bytes_is_recognised_and_one_of_paths_is_not(store, folder):
    parquet.write_table(pa.table({"image": [b"picture a"]}), folder / "bytes.parquet")
    parquet.write_table(pa.table({"image": ["photos/a.jpg"]}), folder / "paths.parquet")
    for name, recognised in (("bytes", True), ("paths", False)):
        run(store, folder / f"{name}.parquet", {"image": CountingPictures()})
        assert run(store, folder / f"{name}.parquet", {"image": CountingPictures()}).recognised is recognised


def test_a_table_in_memory_has_paths_from_the_working_directory(store, folder, monkeypatch):
    monkeypatch.chdir(folder / "photos")
    encoder = CountingPictures()
    run(store, {"image": ["a.jpg", "../photos/b.jpg", str(folder / "photos/c.jpg")]}, {"image": encoder})
    run(store, {"image": [b"picture a", None]}, {"image": encoder})
    run(store, {"image": [Path("a.jpg"), None]}, {"image": encoder})
    assert encoder.seen == [b"picture a", b"picture b", b"picture c"]


def test_columns_of_texts_and_pictures_are_built_together(store, folder):
    texts, pictures = CountingEncoder(), CountingPictures()
    run(store, table(folder, ["photos/a.jpg", "gone.jpg"]), {"n": texts, "image": pictures})
    assert (texts.seen, pictures.seen) == ([b"0", b"1"], [b"picture a"])


def test_a_column_of_numbers_is_no_column_of_pictures(store):
    with pytest.raises(DataError, match="type int64, not pictures"):
        run(store, {"image": [1, 2]}, {"image": CountingPictures()})


def test_plan_and_explain_count_pictures(store, folder):
    path = table(folder, ["photos/a.jpg", "photos/a.jpg", "gone.jpg", ""])
    counts = plan(store, path, {"image": CountingPictures()}).counts
    assert (counts.encoded, counts.duplicates, counts.skipped, counts.missing) == (1, 1, 1, 1)
    assert explain(store, path, {"image": CountingPictures()}).to_encode == 1


def test_on_a_store_that_may_only_be_read_pictures_are_found(store, folder, tmp_path):
    path = table(folder, ["photos/a.jpg"])
    made = run(store, path, {"image": CountingPictures()})
    with open_store(tmp_path / "store", mode="r") as reader:
        assert run(reader, path, {"image": CountingPictures()}, named=False).manifest.id == made.manifest.id

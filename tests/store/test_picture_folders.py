"""A folder per class, and perhaps per split, is a data set of pictures."""

from __future__ import annotations

import os

import pytest

from cachestore import open_store
from cachestore.build import run
from cachestore.dataset import open_dataset
from cachestore.errors import DataError, UsageError
from tests.store.counting import CountingEncoder
from tests.store.pictures import CountingPictures


def made(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"picture " + os.fsencode(name))
    return root


def rows(folder):
    opened = open_dataset(folder)
    columns = list(opened.columns)
    return columns, [tuple(row.values()) for batch in opened.batches(columns) for row in batch.to_pylist()]


def test_a_folder_per_class_gives_paths_and_labels_in_order(tmp_path):
    made(
        tmp_path,
        "dog/2.jpg",
        "cat/b.PNG",
        "cat/more/a.webp",
        "cat/notes.txt",
        "cat/.hidden.jpg",
        ".git/x.png",
        "Thumbs.db",
    )
    assert rows(tmp_path) == (
        ["image", "label"],
        [("cat/b.PNG", "cat"), ("cat/more/a.webp", "cat"), ("dog/2.jpg", "dog")],
    )
    assert open_dataset(tmp_path).rows == 3


def test_a_folder_per_split_gives_a_split(tmp_path):
    made(tmp_path, "train/cat/1.jpg", "val/dog/1.jpg", "test/2.jpg")
    assert rows(tmp_path) == (
        ["image", "split", "label"],
        [("test/2.jpg", "test", None), ("train/cat/1.jpg", "train", "cat"), ("val/dog/1.jpg", "validation", "dog")],
    )


@pytest.mark.parametrize("names", [["test/1.jpg", "trial/2.jpg"], ["test/a/1.jpg"], ["train/1.jpg", "other/a/2.jpg"]])
def test_folders_that_are_no_splits_are_classes(tmp_path, names):
    assert rows(made(tmp_path, *names))[0] == ["image", "label"]


def test_a_folder_of_files_alone_has_no_labels(tmp_path):
    assert rows(made(tmp_path, "1.jpg", "2.jpg")) == (["image"], [("1.jpg",), ("2.jpg",)])


def test_a_folder_without_pictures_says_what_would_be_one(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"is a directory without pictures \(\.jpg"):
        open_dataset(tmp_path)


def test_links_in_circles_end(tmp_path):
    made(tmp_path, "cat/1.jpg")
    (tmp_path / "cat/again").symlink_to(tmp_path)
    (tmp_path / "cat/loop").symlink_to("loop")
    assert rows(tmp_path)[1] == [("cat/1.jpg", "cat")]


def test_a_name_that_is_no_utf8_is_a_path_like_another(tmp_path):
    made(tmp_path, os.fsdecode(b"cat/\xff.jpg"), "cat/1.jpg")
    encoder = CountingPictures()
    with open_store(tmp_path / "store") as store:
        built = run(store, tmp_path, {"image": encoder})
    assert (built.counts.encoded, built.counts.skipped) == (2, 0)


def test_it_is_built_by_the_name_of_the_folder_and_an_added_or_edited_picture_alone_is_encoded(tmp_path):
    photos = made(tmp_path / "photos", "cat/1.jpg", "dog/1.jpg")
    with open_store(tmp_path / "store") as store:
        first = run(store, photos, {"image": CountingPictures()})
        assert first.name == "photos"
        again = run(store, photos, {"image": CountingPictures()})
        assert (again.manifest.id, again.counts.hits, again.recognised) == (first.manifest.id, 2, False)
        made(photos, "ant/1.jpg")
        (photos / "dog/1.jpg").write_bytes(b"picture of another dog")
        encoder = CountingPictures()
        run(store, photos, {"image": encoder})
        assert encoder.seen == [b"picture ant/1.jpg", b"picture of another dog"]
        assert len(store.log("photos")) == 2


def test_a_link_out_of_the_folder_is_skipped(tmp_path):
    photos = made(tmp_path / "photos", "cat/1.jpg")
    made(tmp_path, "elsewhere/2.jpg")
    (photos / "cat/2.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    with open_store(tmp_path / "store") as store:
        built = run(store, photos, {"image": CountingPictures()})
    assert [(cell.row, cell.why[:11]) for cell in built.skipped_cells] == [(1, "'cat/2.jpg'")]


def test_its_paths_are_not_embedded_as_texts_by_mistake(tmp_path):
    photos = made(tmp_path / "photos", "cat/1.jpg")
    with open_store(tmp_path / "store") as store:
        with pytest.raises(UsageError, match="would embed their paths"):
            run(store, photos, {"image": CountingEncoder()})
        assert run(store, photos, {"label": CountingEncoder()}).counts.encoded == 1

"""What comes after a build of pictures: their rows are encoded again to compare, and forgotten."""

from __future__ import annotations

import pytest

from cachestore import open_store
from cachestore.build import run
from cachestore.forget import forget
from cachestore.keys import fingerprint, key
from cachestore.verify import verify
from tests.store.pictures import CountingPictures

ENCODER = CountingPictures(kind="image")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr("cachestore.digests._SETTLED_SECONDS", -1.0)  # so that files' keys are remembered
    for name in "abc":
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(b"picture " + name.encode())
    with open_store(tmp_path / "store") as opened:
        run(opened, tmp_path / "photos", {"image": ENCODER})
        yield opened


def test_pictures_are_encoded_again_and_one_that_was_edited_is_no_damage(store, tmp_path):
    report = verify(store.root, encoders=[ENCODER], reencode=100)
    assert (report.reencoded.rows, report.findings) == (3, ())
    (tmp_path / "photos/b/1.jpg").write_bytes(b"picture edited")
    (tmp_path / "photos/c/1.jpg").write_bytes(b"")
    report = verify(store.root, encoders=[ENCODER], reencode=100)
    assert not report.damage
    (notice,) = report.notices
    assert "2 pictures of column 'image' are not what they were when photos@1 was built" in notice.detail


def test_a_row_of_a_picture_is_forgotten_under_every_encoder(store, tmp_path):
    other = CountingPictures(kind="image", layer=2)
    run(store, tmp_path / "photos", {"image": other}, name="other")
    plan, _ = forget(store, rows=("photos", [1]))
    assert plan.notes == ()
    files = [path for path in store.root.rglob("*") if path.is_file()]
    for encoder in (ENCODER, other):
        held = [key(fingerprint(encoder.spec), b"picture " + name) for name in (b"a", b"b", b"c")]
        assert store.missing(held) == [held[1]]
        assert not [path for path in files if held[1] in path.read_bytes()]

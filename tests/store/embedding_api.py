"""An embedding API on loopback that fails as APIs do, and the encoder of the README that asks it."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tests.test_readme import BLOCK, README

DIM = 6


def vector(text: str) -> list[float]:
    return (np.frombuffer(sha256(text.encode()).digest()[:DIM], np.uint8) / 256).tolist()


class Api(ThreadingHTTPServer):
    """An embedding API. ``faults`` are what it does to the next requests instead of answering."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: list[str] = []
        self.embedded: Counter[str] = Counter()
        self.requests: list[tuple[str | None, list[str]]] = []
        self.arrived = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/embeddings"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no fault of the server."""


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = body["input"]
        with self.server.arrived:
            self.server.requests.append((self.headers["Authorization"], texts))
            self.server.arrived.notify_all()
        fault = self.server.faults.pop(0) if self.server.faults else "none"
        rows = [{"index": at, "embedding": vector(text)} for at, text in enumerate(texts)]
        match fault:
            case "drop":
                self.close_connection = True
                return
            case "half":
                self.answer(200, {"data": rows}, cut=True)
            case "short":
                self.answer(200, {"data": rows[:-1]})
            case "narrow":
                self.answer(200, {"data": [{**row, "embedding": row["embedding"][1:]} for row in rows]})
            case "none":
                self.server.embedded.update(texts)
                self.answer(200, {"data": rows[::-1]})  # APIs promise an index, not an order
            case _:
                code, _, retry_after = fault.partition(" ")
                self.answer(int(code), {"error": f"fault {code}"}, retry_after=retry_after)

    def answer(self, code: int, value: Any, retry_after: str = "", cut: bool = False) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def served() -> Iterator[Api]:
    """The API while it answers, on a port of its own."""
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def write_blocks(folder: Path) -> None:
    """Write the files of the README's section."""
    section = README.read_text(encoding="utf-8").split("\n## Your own encoder\n")[1].split("\n## ")[0]
    for block in BLOCK.finditer(section):
        (folder / block["path"]).write_text(block["body"], encoding="utf-8")


def load_module(folder: Path) -> ModuleType:
    """What ``write_blocks`` wrote, imported."""
    described = importlib.util.spec_from_file_location("api_encoder", folder / "api_encoder.py")
    assert described is not None
    assert described.loader is not None
    made = importlib.util.module_from_spec(described)
    described.loader.exec_module(made)
    return made

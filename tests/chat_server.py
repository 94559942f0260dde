"""A chat-completions server on this machine that behaves as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What the server does with a request: waits, then sends."""

    text: str = ""
    status: int = 200
    body: str | None = None
    delay: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        message = {"choices": [{"message": {"role": "assistant", "content": self.text}}]}
        return (json.dumps(message) if self.body is None else self.body).encode()


@dataclass
class ChatServer:
    """The running server.

    Attributes:
        base_url: What a client is given.
        requests: Bodies of all requests, in the order in which they came.
        keys: Their Authorization headers.
        most: Most requests under way at once.
    """

    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most: int = 0


def asked(request: dict[str, Any]) -> str:
    """The text of the last turn."""
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[ChatServer]:
    """Runs a server that answers each request by `answer`."""
    lock, under_way = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                under_way[0] += 1
                server.most = max(server.most, under_way[0])
                server.requests.append(request)
                server.keys.append(self.headers.get("Authorization"))
                reply = answer(request)
            time.sleep(reply.delay)
            with lock:
                under_way[0] -= 1
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.content())))
                self.end_headers()
                self.wfile.write(reply.content())
            except OSError:
                pass  # the client has given up

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = ChatServer(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def nobody_there() -> str:
    """A base URL at which nothing listens."""
    with serving(lambda request: Answer()) as server:
        return server.base_url

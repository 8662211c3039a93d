"""A completions server in the process of the tests, without a model: it writes what a function says, and fails on demand."""

import contextlib
import http.server
import json
import socket
import threading
import time
import zlib
from collections import Counter

WAYS = ("429", "500", "503", "cut", "html", "half", "slow")


def choice(text, finish="stop", **more):
    """Return a completion as vLLM writes it."""
    return {"text": text, "finish_reason": finish, "logprobs": None, **more}


class StandIn(http.server.ThreadingHTTPServer):
    """Answers completions with ``write(body, request id)``, a list of choices.

    ``fails(request id, attempt)`` names one of `WAYS`, or nothing. ``sent`` counts the answers that were sent whole, by request.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, write, fails=lambda name, attempt: "", model="tiny", slow=0.3):
        super().__init__(("127.0.0.1", 0), Handler)
        self.write, self.fails, self.model, self.slow = write, fails, model, slow
        self.sent, self.bodies, self.lock = Counter(), [], threading.Lock()
        self.in_flight = self.most_in_flight = self.connections = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        pass


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connections += 1

    def log_message(self, *args):
        pass

    def answer(self, status, data, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def do_GET(self):
        self.answer(200, json.dumps({"data": [{"id": self.server.model, "max_model_len": 4096}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, _, attempt = self.headers["X-Request-Id"].rpartition("-")
        server = self.server
        if not self.path.endswith("/completions"):
            self.answer(404, b"{}")
            return
        with server.lock:
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        try:
            self.respond(body, name, server.fails(name, int(attempt)))
        finally:
            with server.lock:
                server.in_flight -= 1

    def respond(self, body, name, way):
        if way in ("429", "500", "503"):
            self.answer(int(way), b'{"error": "busy"}')
            return
        if way == "cut":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if way == "html":
            self.answer(200, b"<html>bad gateway</html>")
            return
        found = [{"index": i, **c} for i, c in enumerate(self.server.write(body, name))]
        tokens = sum(len(c["text"].split()) for c in found)
        data = json.dumps({"choices": found, "usage": {"completion_tokens": tokens}}).encode()
        if way == "half":
            self.answer(200, data[: len(data) // 2], length=len(data) // 2)
            return
        if way == "slow":
            time.sleep(self.server.slow)
        self.answer(200, data)
        with self.server.lock:
            self.server.sent[name] += 1
            self.server.bodies.append(body)


def settle(*servers):
    """Wait until requests that were answered are counted."""
    end = time.monotonic() + 10
    while any(s.in_flight for s in servers) and time.monotonic() < end:
        time.sleep(0.002)


@contextlib.contextmanager
def serving(*args, **more):
    """Serve in a thread; yield the `StandIn`."""
    server = StandIn(*args, **more)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def often_failing(share):
    """Return a ``fails`` that fails this share of the attempts, in every way in turn."""

    def fails(name, attempt):
        drawn = zlib.crc32(f"{name} {attempt}".encode())
        return WAYS[drawn % len(WAYS)] if (drawn >> 8) % 10_000 < 10_000 * share else ""

    return fails

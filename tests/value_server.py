"""A stand-in for servers of reward models, in a thread: vLLM's /classify, /pooling and /v1/completions, SGLang's /v1/score.

It computes with a model in this process. ``kind`` says how it misbehaves; ``asked`` lists (path, sequences) of every request.
"""

import contextlib
import http.server
import json
import threading

import torch

MODEL = "prm"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.send(200, {"data": [{"id": MODEL}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        if self.path not in server.paths:
            self.send(404, {"detail": "Not Found"})
            return
        sequences = body.get("input") or body.get("prompt") or [body["query"] + body["items"][0]]
        with server.busy:
            server.asked.append((self.path, len(sequences)))
            rows = [self.rows(ids) for ids in sequences]
        if server.kind == "html":
            self.send(200, b"<html>hello</html>")
        elif server.kind == "redirect":
            self.send_response(307)
            self.send_header("Location", "http://elsewhere.invalid/classify")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send(200, self.answer(body, rows))

    def rows(self, ids):
        with torch.inference_mode():
            return self.server.logits(torch.tensor([ids]))[0].double()

    def answer(self, body, rows):
        kind = self.server.kind
        if kind == "other":
            rows = [row + torch.linspace(0, 3, row.shape[-1]) for row in rows]
        if self.path in ("/classify", "/pooling"):
            if body["use_activation"] or kind == "probabilities":
                rows = [row.softmax(-1) for row in rows]
            if kind == "three":
                rows = [torch.cat([row, row], -1) for row in rows]
            if kind == "nan":
                rows = [row * float("nan") for row in rows]
            name = "probs" if self.path == "/classify" else "data"
            last = [row[-1] if self.path == "/classify" else row for row in rows]
            data = [{"index": i, name: row.tolist()} for i, row in enumerate(last)]
            if kind == "reversed":
                data.reverse()
            if kind == "unnumbered":
                data = [{name: row[name]} for row in reversed(data)]
            return {"data": data[:-1] if kind == "short" and len(data) > 1 else data}
        laws = [row[-1].log_softmax(-1) for row in rows]
        if self.path == "/v1/score":
            own = laws[0][body["label_token_ids"]].softmax(-1)
            return {"scores": [own.tolist()]}
        tops = [{f"token_id:{i}": float(law[i]) for i in body["logprob_token_ids"]} for law in laws]
        return {
            "choices": [
                {"index": i, "text": "x", "logprobs": {"top_logprobs": [top]}} for i, top in enumerate(tops)
            ]
        }


@contextlib.contextmanager
def serving(logits, paths, kind=""):
    """Serve ``logits``, ids (1, L) to (1, L, k), under ``paths``; yield the server, its address in ``url``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.logits, server.paths, server.kind, server.asked = logits, paths, kind, []
    server.busy, server.daemon_threads = threading.Lock(), True
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

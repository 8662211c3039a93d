"""A small OpenAI-compatible completions server for the tests: a real process on loopback, a policy through transformers.

``transformers serve`` has /v1/completions too, but takes one string for a prompt and no ``n``, hands stop strings to
``generate`` (which a word-level tokenizer cannot serve), and needs fastapi, uvicorn and openai. So the tests bring
their own, which can also behave like servers of different kinds. Which kind is the first part of the path:
``http://127.0.0.1:PORT/vllm/v1`` and so on (see KINDS).

The process that is started loads the model and forks the one that serves; where that is killed, it forks another
on the same port a moment later, as a supervisor of services would.

Usage: ``python tests/server.py MODEL_FOLDER LOG_FILE`` prints its port. LOG_FILE gets a line for every completions
answer that was sent whole: kind, request id, number of choices.
"""

import http.server
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

KINDS = {
    "vllm": "n, batches, seeds as seed + index, stop strings kept if asked, stop_reason",
    "reversed": "the same, choices in reverse order",
    "trimmed": "as vllm, but stop strings are never kept: only stop_reason tells",
    "sglang": "no_stop_trim, matched_stop; seeds ignored",
    "clones": "as sglang with deterministic inference: one draw n times over, for equal prompts too",
    "llama": "ignores n, says nothing about stops, answers a list of prompts by a list",
    "strict": "refuses unknown fields, trims stop strings and says nothing about it",
    "brittle": "500 where a stop string is asked for",
    "unbatched": "as vllm, but answers only the first of several prompts",
    "fixed": "the same completions for everybody, always",
    "busy": "429 with Retry-After at the first attempt of every request",
    "flaky": "500, a broken connection or half an answer at the first attempts",
    "limited": "always 429, come back in an hour",
    "failing": "always 500, and says back what key it got",
    "hanging": "answers completions after a minute",
    "html": "a web page, whatever is asked",
    "garbled": "completions without choices",
    "nested": "JSON nested 200,000 deep",
    "halves": "half a surrogate pair in every text",
    "talkative": "steps of 40 times max_tokens words, counted right",
    "uncounted": "steps of 300 times max_tokens characters, not counted",
    "dribbling": "a byte every tenth of a second",
    "filtered": "every completion ended by a content filter",
    "locked": "401 unless the key is right, and says back what key it got",
    "forbidden": "403",
    "moved": "redirects to another host",
    "several": "two models",
    "other": "lists a model of another name than it has",
    "nameless": "has no list of models",
    "mortal": "is killed in the middle of every seventh answer",
}
KEY = "sk-right-1234567890"
# What a server is probed with; the tests ask for shorter steps.
PROBE_TOKENS = 16
KNOWN = {
    "model", "prompt", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "presence_penalty",
    "frequency_penalty", "stream",
}  # fmt: skip
MODEL = "tiny"


class Sampler:
    """Draws completions; remembers the law of the next token after every text it has read."""

    def __init__(self, folder):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.context = self.model.config.max_position_embeddings
        self.laws = {}

    def law(self, ids, temperature):
        key = (ids, temperature)
        if key not in self.laws:
            with self.torch.inference_mode():
                logits = self.model(self.torch.tensor([ids])).logits[0, -1].double() / temperature
            self.laws[key] = self.torch.softmax(logits, -1).cumsum(0).numpy()
        return self.laws[key]

    def complete(self, ids, body, rng):
        """Return the text, why it ended, what matched, and the number of tokens."""
        stops = body.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        skip = body.get("skip_special_tokens", True)
        new = ()
        while len(new) < body.get("max_tokens", 16):
            law = self.law(ids + new, body.get("temperature", 1.0))
            token = min(int(law.searchsorted(rng.random() * law[-1], side="right")), len(law) - 1)
            eos = token == self.tokenizer.eos_token_id
            if eos and body.get("ignore_eos"):
                continue
            new += (token,)
            text = self.tokenizer.decode(list(new), skip_special_tokens=skip)
            if eos:
                return text, "stop", token, len(new)
            for stop in stops:
                if stop in text:
                    return text[: text.index(stop) + len(stop)], "stop", stop, len(new)
        return text, "length", None, len(new)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    sampler = None
    log = None
    lock = threading.Lock()
    answered = 0

    def log_message(self, *args):
        pass

    def send(self, status, body, headers=(), kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def fail(self, status, message, headers=()):
        self.send(status, {"error": {"message": message, "code": status}}, headers)

    def stopped(self):
        """Answer for the kinds that have the same answer to everything."""
        if self.kind == "html":
            self.send(200, b"<html>hello</html>", kind="text/html")
        elif self.kind == "forbidden":
            self.fail(403, "no")
        elif self.kind == "moved":
            self.send(307, b"", {"Location": "http://elsewhere.invalid/v1" + self.path})
        elif self.kind == "locked" and self.headers.get("Authorization") != f"Bearer {KEY}":
            self.fail(401, f"wrong key: {self.headers.get('Authorization')}")
        else:
            return False
        return True

    def do_GET(self):
        self.kind = self.path.split("/")[1]
        if self.stopped():
            pass
        elif self.kind == "nameless":
            self.fail(404, "no such path")
        else:
            names = {"several": [MODEL, "large"], "other": ["renamed"]}.get(self.kind, [MODEL])
            cards = [{"id": n, "object": "model"} for n in names]
            if self.kind in ("vllm", "sglang", "reversed"):
                cards = [c | {"max_model_len": self.sampler.context} for c in cards]
            self.send(200, {"object": "list", "data": cards})

    def do_POST(self):
        self.kind = self.path.split("/")[1]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.request_id = self.headers.get("X-Request-Id", "")
        attempt = int(self.request_id.rpartition("-")[2])
        refused = self.refusal(body, attempt)
        if self.stopped():
            pass
        elif refused is not None:
            self.fail(*refused)
        elif self.kind == "flaky" and attempt == 1:
            self.connection.shutdown(socket.SHUT_RDWR)
        elif self.kind == "garbled":
            self.send(200, {"object": "text_completion", "id": "x"})
        else:
            time.sleep(60 if self.kind == "hanging" else 0)
            if self.kind == "dribbling":
                self.dribble()
                return
            if self.kind == "nested":
                self.send(200, b"[" * 200_000)
                return
            with self.lock:
                self.deliver(self.completions(body), attempt)

    def refusal(self, body, attempt):
        """Return status, message and headers where servers of this kind refuse the request."""
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        longest = max(len(self.sampler.tokenizer(p)["input_ids"]) for p in prompts)
        if body["model"] not in (MODEL, "large"):
            return 404, f"The model {body['model']} does not exist."
        if self.kind == "limited":
            return 429, "too many requests", {"Retry-After": "3600"}
        if self.kind == "busy" and attempt == 0:
            return 429, "too many requests", {"Retry-After": "0.2"}
        if self.kind == "failing" or (self.kind == "flaky" and attempt == 0):
            key = self.headers.get("Authorization")
            return 500, "out of memory" + (f", key {key}" if key else "")
        if self.kind == "brittle" and "stop" in body:
            return 500, "no stop strings here"
        if self.kind == "strict" and set(body) - KNOWN:
            return 400, f"unknown fields: {sorted(set(body) - KNOWN)}"
        if self.kind in ("vllm", "llama") and longest + body["max_tokens"] > self.sampler.context:
            return 400, f"This model's maximum context length is {self.sampler.context}, not {longest}."
        return None

    def deliver(self, answer, attempt):
        """Log an answer and send it, or die in the middle: under the lock, so that the log has what was sent whole."""
        Handler.answered += 1
        if (self.kind == "mortal" and self.answered % 7 == 0) or (self.kind == "flaky" and attempt == 2):
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if self.kind == "mortal":
                os.kill(os.getpid(), signal.SIGKILL)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        parts = answer if isinstance(answer, list) else [answer]
        with Path(self.log).open("a") as file:
            file.write(f"{self.kind} {self.request_id} {sum(len(p['choices']) for p in parts)}\n")
        self.send(200, answer)

    def dribble(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.1)

    def completions(self, body):
        import numpy as np

        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        n, seed = body.get("n", 1), body.get("seed")
        prompts = prompts[:1] if self.kind == "unbatched" else prompts
        n = 1 if self.kind == "llama" else n
        seed = {"sglang": None, "clones": 42 if seed is None else seed, "fixed": 7}.get(self.kind, seed)
        choices, tokens = [], 0
        for prompt in prompts:
            ids = tuple(self.sampler.tokenizer(prompt)["input_ids"])
            for i in range(n):
                rng = np.random.default_rng(None if seed is None else seed + i * (self.kind != "clones"))
                text, finish, matched, used = self.sampler.complete(ids, body, rng)
                if self.kind == "halves":
                    text = "\ud83d " + text
                if body["max_tokens"] < PROBE_TOKENS and self.kind in ("talkative", "uncounted"):
                    used = 40 * body["max_tokens"] if self.kind == "talkative" else 0
                    text = "r3 " * (100 * body["max_tokens"]) + "\n"
                tokens += used
                choices.append(self.choice(body, len(choices), text, finish, matched))
        if self.kind == "llama" and len(choices) > 1:
            return [{"choices": [c], "usage": {"completion_tokens": 0}} for c in choices]
        if self.kind == "reversed":
            choices.reverse()
        return {"id": "cmpl", "choices": choices, "usage": {"completion_tokens": tokens}}

    def choice(self, body, index, text, finish, matched):
        """Return a choice as servers of this kind write it."""
        keep = {"sglang": "no_stop_trim", "clones": "no_stop_trim", "trimmed": "", "llama": "", "strict": ""}
        name = keep.get(self.kind, "include_stop_str_in_output")
        if isinstance(matched, str) and not body.get(name):
            text = text[: -len(matched)]
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        if self.kind == "filtered":
            choice["finish_reason"] = "content_filter"
        if self.kind in ("sglang", "clones"):
            choice["matched_stop"] = matched
        elif self.kind not in ("llama", "strict"):
            choice["stop_reason"] = matched if isinstance(matched, str) else None
        return choice


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass


def serve(server):
    """Serve until the process that forked this one is gone."""
    parent = os.getppid()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(0)


def main(folder, log):
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    Handler.sampler, Handler.log = Sampler(folder), log
    server = Server(("127.0.0.1", 0), Handler)
    address = server.server_address
    print(address[1], flush=True)
    while True:
        child = os.fork()
        if child == 0:
            serve(server)
        server.server_close()
        os.waitpid(child, 0)
        time.sleep(0.2)
        server = Server(address, Handler)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A small OpenAI-compatible completions server for the tests: a real process on loopback, a policy through transformers.

``transformers serve`` has /v1/completions too, but takes one string for a prompt and no ``n``, hands stop strings to
``generate`` (which a word-level tokenizer cannot serve), and needs fastapi, uvicorn and openai. So the tests bring
their own, which can also behave like servers of different kinds. Which kind is the first part of the path:
``http://127.0.0.1:PORT/vllm/v1`` and so on (see KINDS). What stands behind a dash is the name of one such server, which
may die without the others.

Draws of requests without a seed follow from the request's id, so that tests can be repeated.

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
import zlib
from pathlib import Path

import numpy

KINDS = {
    "vllm": "n, batches, seeds as seed + index, stop strings kept if asked, stop_reason, filters",
    "seedless": "as vllm on a CPU: a seed kills the engine, 500 and then nobody listens, once and for all",
    "dying": "as seedless, but top_k does it, and what answers then is a gateway: 503",
    "reversed": "the same, choices in reverse order",
    "trimmed": "as vllm, but stop strings are never kept: only stop_reason tells",
    "sglang": "no_stop_trim, matched_stop; seeds ignored",
    "clones": "as sglang with deterministic inference: one draw n times over, for equal prompts too",
    "llama": "8 slots: refuses a larger n, miscounts; tells of stops at its own /completion alone; no list of prompts",
    "oldllama": "ignores n, says nothing about stops, answers a list of prompts by a list, counts nothing",
    "transformers": "one draw, no list of models (500), ignores unknown fields, says nothing about stops",
    "greedy": "the most probable word, whatever the temperature",
    "cached": "the same answer to the same request",
    "foreign": "as vllm, but counts characters as tokens of a prompt",
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
SLOTS = 8
DEAD = set()
# They do not tell what ended a completion.
SILENT = ("strict", "oldllama", "transformers", "greedy")
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

    def learn(self, rows, temperature):
        """Remember the laws behind rows of ids, all of one length."""
        new = [ids for ids in dict.fromkeys(rows) if (ids, temperature) not in self.laws]
        if new:
            with self.torch.inference_mode():
                logits = self.model(self.torch.tensor(new)).logits[:, -1].double() / temperature
            for ids, law in zip(new, self.torch.softmax(logits, -1).cumsum(1).numpy(), strict=True):
                self.laws[ids, temperature] = law

    def complete(self, ids, body, rngs):
        """Return for each generator (None: greedy) the text, why it ended, what matched, and the number of tokens."""
        stops = body.get("stop") or []
        stops = [stops] if isinstance(stops, str) else stops
        temperature, found = body.get("temperature", 1.0), [None] * len(rngs)
        rows = [()] * len(rngs)
        for _ in range(body.get("max_tokens", 16)):
            live = [i for i, f in enumerate(found) if f is None]
            self.learn([ids + rows[i] for i in live], temperature)
            for i in live:
                rows[i] += (
                    self.token(self.laws[ids + rows[i], temperature], rngs[i], body.get("ignore_eos")),
                )
                found[i] = self.ended(rows[i], stops, body)
        for i, row in enumerate(rows):
            text = self.tokenizer.decode(list(row), skip_special_tokens=body.get("skip_special_tokens", True))
            found[i] = found[i] or (text, "length", None, len(row))
        return found

    def token(self, law, rng, onward):
        eos, p = self.tokenizer.eos_token_id, numpy.diff(law, prepend=0.0)
        if onward:
            p[eos] = 0.0
        law = p.cumsum()
        if rng is None:
            return int(p.argmax())
        return min(int(law.searchsorted(rng.random() * law[-1], side="right")), len(law) - 1)

    def ended(self, row, stops, body):
        text = self.tokenizer.decode(list(row), skip_special_tokens=body.get("skip_special_tokens", True))
        if row[-1] == self.tokenizer.eos_token_id:
            return text, "stop", row[-1], len(row)
        for stop in stops:
            if stop in text:
                return text[: text.index(stop) + len(stop)], "stop", stop, len(row)
        return None


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

    def parse_path(self):
        self.instance = self.path.split("/")[1]
        self.kind = self.instance.partition("-")[0]

    def do_GET(self):
        self.parse_path()
        if self.stopped():
            pass
        elif self.kind == "nameless":
            self.fail(404, "no such path")
        elif self.kind == "transformers":
            self.fail(500, "Internal Server Error")
        else:
            names = {"several": [MODEL, "large"], "other": ["renamed"]}.get(self.kind, [MODEL])
            cards = [{"id": n, "object": "model"} for n in names]
            if self.kind in ("vllm", "sglang", "reversed", "seedless", "dying"):
                cards = [c | {"max_model_len": self.sampler.context} for c in cards]
            self.send(200, {"object": "list", "data": cards})

    def do_POST(self):
        self.parse_path()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.native = self.path.endswith("/completion")
        if self.native and self.kind == "llama":
            body["max_tokens"] = body["n_predict"]
        elif not self.path.endswith("/completions"):
            self.fail(404, "no such path")
            return
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
        if self.instance in DEAD or (
            self.kind,
            {"seedless": "seed", "dying": "top_k"}.get(self.kind),
        ) in {(self.kind, name) for name in body}:
            DEAD.add(self.instance)
            return (
                (500, "EngineCore encountered an issue")
                if self.kind == "seedless"
                else (503, "no healthy upstream")
            )
        if self.kind == "transformers" and isinstance(body["prompt"], list):
            return 422, "prompt: a string is expected"
        if self.kind == "llama" and body.get("n", 1) > SLOTS:
            return 400, f"n_cmpl cannot be greater than the number of slots, {SLOTS}"
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
            file.write(f"{self.kind} {self.request_id} {sum(len(p.get('choices', [p])) for p in parts)}\n")
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
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        n, seed = body.get("n", 1), body.get("seed")
        prompts = prompts[:1] if self.kind == "unbatched" else prompts
        n = 1 if self.kind in ("oldllama", "transformers") else n
        seed = {"sglang": None, "clones": 42 if seed is None else seed, "fixed": 7}.get(self.kind, seed)
        if seed is None and self.kind != "fixed":
            seed = zlib.crc32(self.drawn_by().encode())
            seed = zlib.crc32(json.dumps(body).encode()) if self.kind == "cached" else seed
        filters = self.kind not in ("transformers", "strict", "oldllama") and body.get("top_k", -1) == 1
        choices, tokens, read = [], 0, 0
        for k, prompt in enumerate(prompts):
            ids = tuple(self.sampler.tokenizer(prompt)["input_ids"])
            read += len(prompt) if self.kind == "foreign" else len(ids)
            alike, greedy = self.kind in ("clones", "fixed"), filters or self.kind == "greedy"
            rngs = [numpy.random.default_rng(seed if alike else [seed, k, i]) for i in range(n)]
            for text, finish, matched, used in self.sampler.complete(
                ids, body, [None] * n if greedy else rngs
            ):
                if self.kind == "halves":
                    text = "\ud83d " + text
                if body["max_tokens"] < PROBE_TOKENS and self.kind in ("talkative", "uncounted"):
                    used = 40 * body["max_tokens"] if self.kind == "talkative" else 0
                    text = "r3 " * (100 * body["max_tokens"]) + "\n"
                tokens += used
                last = used
                choices.append(self.choice(body, len(choices), text, finish, matched) | {"used": used})
        used = [c.pop("used") for c in choices]
        if self.native:
            found = [native(c, u) for c, u in zip(choices, used, strict=True)]
            return found if len(found) > 1 else found[0]
        if self.kind == "oldllama" and len(choices) > 1:
            return [{"choices": [c], "usage": {"completion_tokens": 0}} for c in choices]
        tokens = last if self.kind == "llama" else tokens
        if self.kind == "reversed":
            choices.reverse()
        return {
            "id": "cmpl",
            "choices": choices,
            "usage": {"completion_tokens": tokens, "prompt_tokens": read},
        }

    def drawn_by(self):
        """Return the part of a request's id that is drawn, not counted: it is the same in a run that was resumed."""
        name = self.request_id.rpartition("-")[0]
        return name if "probe" in name else name.rpartition("-")[0]

    def choice(self, body, index, text, finish, matched):
        """Return a choice as servers of this kind write it."""
        keep = {"sglang": "no_stop_trim", "clones": "no_stop_trim"} | dict.fromkeys(
            (*SILENT, "trimmed", "llama"), ""
        )
        name = keep.get(self.kind, "include_stop_str_in_output")
        if isinstance(matched, str) and not body.get(name):
            text = text[: -len(matched)]
        logprobs = (
            {"token_logprobs": [-1.0], "tokens": ["a"]}
            if body.get("logprobs") and self.kind == "vllm"
            else None
        )
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        if self.kind == "filtered":
            choice["finish_reason"] = "content_filter"
        if self.kind in ("sglang", "clones"):
            choice["matched_stop"] = matched
        elif self.native:
            choice["matched"] = matched
        elif self.kind not in (*SILENT, "llama"):
            choice["stop_reason"] = matched if isinstance(matched, str) else None
        return choice


def native(choice, used):
    """Return a choice as llama.cpp's own endpoint writes it."""
    finish, word = choice["finish_reason"], choice["matched"] if isinstance(choice["matched"], str) else ""
    kind = "limit" if finish == "length" else "word" if word else "eos"
    return {
        "index": choice["index"],
        "content": choice["text"],
        "stop": True,
        "stop_type": kind,
        "stopping_word": word,
        "tokens_predicted": used,
    }


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


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

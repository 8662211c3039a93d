"""Requests to an OpenAI-compatible completions endpoint.

Requests run on a bounded number of threads, as many at a time as the server can take (:mod:`rmtools.serving.window`); with
several servers each one goes to the least busy. A failed one is sent again whole, the same to the last byte
(:mod:`rmtools.serving.retry`), to any of them. Its first complete answer is used and no other, so no sample is lost and none
counts twice. The API key is read from the environment, sent in one header to the named hosts only, and never part of a message.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import httpx2
import numpy as np

from rmtools.errors import UserError
from rmtools.files import parse_json
from rmtools.particles.arguments import check_generator
from rmtools.serving.errors import BASE_URL, KEY_VARIABLE, PassingError, RefusedError, ServerErrors
from rmtools.serving.responses import Answer, ModelCard, read_answer, read_models
from rmtools.serving.retry import RetryPolicy
from rmtools.serving.threads import run_all
from rmtools.serving.window import Windows

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT, LIST_TIMEOUT = 10.0, 30.0
COMPLETIONS = "/completions"
# Of a request at the first contact: 256 tokens of a slow server.
FIRST_TIMEOUT = 120.0
# An answer that took this share of the time limit means that the server has too much to do.
SLOW_SHARE = 0.25
# Failures that say nothing of the next request to the same server.
ALIVE = ("limited",)


@dataclass(frozen=True)
class ServerSettings:
    """How a server is asked; ``UserError`` if a value is out of range.

    Parameters
    ----------
    model : str, optional
        Needed if the server has several.
    temperature : float
        Of the softmax.
    concurrency : int
        Largest number of requests in flight at each server; fewer where it is too busy.
    prompts_per_request : int
        Largest number of distinct prefixes in a request.
    timeout : float
        Seconds for a request and its whole answer. Generous: where a server ignores seeds, sending the slow requests
        again would favour short steps.
    patience : float
        Seconds for which a failing request is sent again.
    seeds : bool
        Send a seed with every request of one prefix, so that a run on an idle server can be repeated. Some servers stop at
        their first one (vLLM's CPU build), and no run needs them to be right.
    """

    model: str | None = None
    temperature: float = 1.0
    concurrency: int = 64
    prompts_per_request: int = 1
    timeout: float = 600.0
    patience: float = 300.0
    seeds: bool = False

    def __post_init__(self) -> None:
        for name, fix in (
            ("temperature", "the sampler needs random steps: 1 samples from the model's own law"),
            ("timeout", "600 seconds is the default"),
        ):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}", fix)
        for name, least in (("concurrency", 1), ("prompts_per_request", 1), ("patience", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}", "leave it out")


class Endpoint:
    """The ``/models`` and ``/completions`` of the server at ``url`` (with or without ``/v1``), or of several that serve the same.

    ``rng`` draws the jitter of the delays between attempts, and nothing else. ``repeated`` counts the requests sent again
    so far; ``close`` closes the connections.

    Raises
    ------
    UserError
        If a URL is none of a server, or the environment's key, proxies or certificates cannot be used.
    """

    def __init__(self, url: str | Sequence[str], rng: np.random.Generator, settings: ServerSettings) -> None:
        self.urls = [base_url(u) for u in ([url] if isinstance(url, str) else url)]
        if len(set(self.urls)) < len(self.urls):
            raise UserError(f"a server is named twice: {', '.join(self.urls)}", "name each one once")
        self.settings = settings
        self.repeated = 0
        # Whether a completions request was ever answered.
        self.answered = False
        self._retry = RetryPolicy(settings.patience, check_generator(rng))
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        key = api_key()
        self.errors = [ServerErrors(u, key) for u in self.urls]
        self.windows = Windows(len(self.urls), settings.concurrency)
        n = settings.concurrency * len(self.urls)
        # Redirects are not followed: the key is for the named hosts only.
        try:
            self._client = httpx2.Client(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                limits=httpx2.Limits(max_connections=n, max_keepalive_connections=n),
                follow_redirects=False,
            )
        except (ImportError, ValueError, OSError) as error:
            raise UserError(
                f"no connection can be set up: {self.errors[0].clean(str(error)) or type(error).__name__}",
                "check the environment: ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, SSL_CERT_FILE, SSL_CERT_DIR",
            ) from None
        # Also if nobody calls close, at the latest when the program ends.
        self.close = weakref.finalize(self, self._client.close)

    @property
    def url(self) -> str:
        """The address, or all of them, for messages."""
        return ", ".join(self.urls)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an Endpoint holds open connections and cannot be copied or saved: make another one")

    def warn(self, kind: str, message: str) -> None:
        """Log ``message``, once for all messages of this ``kind``."""
        with self._lock:
            new = kind not in self._warned
            self._warned.add(kind)
        if new:
            logger.warning("%s: %s", self.url, message)

    def models(self) -> list[ModelCard]:
        """Return the server's models; raise ``RefusedError`` if it has no list of them."""
        return self._answered(
            lambda k, at: self._once(at, "/models", None, f"models-{k}", read_models), first=True
        )

    def ask(
        self,
        body: Mapping[str, Any],
        name: str,
        stop: threading.Event | None = None,
        *,
        first: bool = False,
        path: str = COMPLETIONS,
    ) -> Answer:
        """Send one completions request until it is answered; ``stop`` and ``first`` as in `RetryPolicy.call`.

        Raises ``UserError`` if it is not answered within ``patience``, or waiting cannot help.
        """

        def send(attempt: int, at: int) -> Answer:
            return self._once(at, path, body, f"{name}-{attempt}", read_answer, self._limit(first))

        answer = self._answered(send, stop, first=first)
        self.answered = True
        return answer

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        name: str,
        read: Callable[[Any], T],
        stop: threading.Event | None = None,
        *,
        first: bool = False,
    ) -> T:
        """Send a request to ``path`` of the server itself, without ``/v1``, as `ask` does; ``read`` reads the answer.

        A ``UserError`` of ``read`` makes the answer one that cannot be read: it is asked for again.
        """

        def send(attempt: int, at: int) -> T:
            return self._once(at, f"..{path}", body, f"{name}-{attempt}", read, self._limit(first))

        return self._answered(send, stop, first=first)

    def _limit(self, first: bool) -> float:
        """Return the seconds for a request and its answer."""
        return min(self.settings.timeout, FIRST_TIMEOUT) if first else self.settings.timeout

    def ask_all(
        self,
        bodies: Sequence[Mapping[str, Any]],
        ids: Sequence[str],
        *,
        first: bool = False,
        path: str = COMPLETIONS,
    ) -> list[Answer]:
        """Send many requests, as many at a time as the servers can take; return their answers in the order of the requests.

        Raises the first ``UserError``; the other requests are abandoned.
        """
        jobs = [
            partial(self.ask, body, i, first=first, path=path) for body, i in zip(bodies, ids, strict=True)
        ]
        return run_all(jobs, self.settings.concurrency * len(self.urls))

    def _answered(
        self, send: Callable[[int, int], T], stop: threading.Event | None = None, *, first: bool
    ) -> T:
        """Return the result of ``send(attempt, server)``; warn of failures and count what is sent again."""
        stop = stop or threading.Event()

        def retrying(failure: PassingError) -> None:
            self.warn(failure.kind, f"{failure.error.fact}; trying again for {self.settings.patience:g} s")
            with self._lock:
                self.repeated += 1

        def once(attempt: int) -> T:
            at, sent = self.windows.enter(stop), time.monotonic()
            if at < 0:
                raise UserError("the request was abandoned", "see the error before it")
            failure: PassingError | None = None
            answered = False
            try:
                result = send(attempt, at)
                answered = True
                return result
            except PassingError as error:
                failure = error
                raise
            finally:
                slow = time.monotonic() - sent > SLOW_SHARE * self.settings.timeout
                busy = slow or (failure is not None and (failure.busy or failure.kind == "slow"))
                failed = failure is not None and failure.kind not in ALIVE
                self.windows.leave(at, sent, answered=answered, busy=busy, failed=failed)

        return self._retry.call(once, retrying, stop, first=first, suspect=self.answered)

    def _once(
        self,
        at: int,
        path: str,
        body: Mapping[str, Any] | None,
        request_id: str,
        read: Callable[[Any], T],
        limit: float = LIST_TIMEOUT,
    ) -> T:
        """Send a request once to server ``at`` and read its answer; a request without a body is a GET."""
        errors, limit = self.errors[at], min(limit, self.settings.timeout)
        try:
            response, content = self._sent(self.urls[at], path, body, request_id, limit)
        except httpx2.RequestError as error:
            # Not chained: the library's message may quote the request's headers.
            raise errors.unreachable(error, limit) from None
        except UnicodeError:
            raise UserError(f"{self.urls[at]} is not the address of a server", BASE_URL) from None
        if not response.is_success:
            failure = errors.failed(response, content, path)
            if response.status_code == 404 and isinstance(failure, RefusedError) and body is not None:
                raise RefusedError(failure.fact, self._models_it_has(at) or failure.fix)
            raise failure
        try:
            value = parse_json(content.decode())
        except ValueError:
            raise errors.unreadable("it answers something that is not JSON") from None
        try:
            return read(value)
        except UserError as error:
            raise errors.unreadable(error.fact) from None

    def _sent(
        self, url: str, path: str, body: Mapping[str, Any] | None, request_id: str, limit: float
    ) -> tuple[httpx2.Response, bytes]:
        """Send a request; return the response and its content, received within ``limit`` seconds.

        The library's own limits hold for each read by itself: a server that sends a byte now and then meets them all.
        """
        end = time.monotonic() + limit
        timeout = httpx2.Timeout(limit, connect=min(limit, CONNECT_TIMEOUT), pool=None)
        given: dict[str, Any] = {"json": body, "headers": {"X-Request-Id": request_id}, "timeout": timeout}
        content = bytearray()
        with self._client.stream("GET" if body is None else "POST", address(url, path), **given) as response:
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("the whole answer took too long")
        return response, bytes(content)

    def _models_it_has(self, at: int) -> str:
        """Return the fix for a model that is missing; nothing if the server does not list its models."""
        try:
            cards = self._once(at, "/models", None, "models", read_models)
        except (PassingError, UserError):
            return ""
        return f"the models it has are: {', '.join(self.errors[at].clean(c.id) for c in cards[:10])}"


def address(url: str, path: str) -> str:
    """Return where a request is sent: llama.cpp's own paths are beside ``/v1``, not below it.

    >>> address("http://host/v1", "/completions"), address("http://host/v1", "../completion")
    ('http://host/v1/completions', 'http://host/completion')
    """
    return url.removesuffix("/v1") + path.removeprefix("..") if path.startswith("..") else url + path


def base_url(url: str) -> str:
    """Return the URL that ``/models`` and ``/completions`` are appended to.

    Raises
    ------
    UserError
        If it is no URL of a server, or holds a password (which would be printed).

    >>> base_url("http://localhost:8000/"), base_url("https://host/openai/v3/completions")
    ('http://localhost:8000/v1', 'https://host/openai/v3')
    """
    url = url.strip()
    if any(c in url for c in "@?#"):
        raise UserError(
            "the address of the server holds more than host and path: messages print it, so it must hold no secret",
            f"leave user, password and query out; an API key goes into {KEY_VARIABLE} in the environment",
        )
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError):
        parsed = httpx2.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host or any(c.isspace() for c in url):
        raise UserError(f"{url!r} is not the address of a server", BASE_URL)
    path = parsed.path.rstrip("/").removesuffix("/completions")
    return str(parsed.copy_with(path=path or "/v1"))


def api_key() -> str:
    """Return the key from the environment, or nothing; raise ``UserError`` if it cannot be one."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not all("!" <= c <= "~" for c in key):
        raise UserError(
            f"{KEY_VARIABLE} holds characters that no API key has",
            "look for spaces, quotes and line breaks in it",
        )
    return key

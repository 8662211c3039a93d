"""The HTTP side of a policy behind a server: requests to an OpenAI-compatible completions endpoint.

Requests run on a bounded number of threads. One that fails in passing (the server is away, overloaded, or says
something unreadable) is sent again whole, the same to the last byte, until ``patience`` runs out; its first
complete answer is used and no other, so no sample is lost and none counts twice. What cannot get better by waiting
raises at once. The API key is read from the environment, sent in one header to the one host that was named, and
is no part of any message.
"""

import logging
import os
import threading
import time
import urllib.parse
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import httpx2
import numpy as np

from rmtools.errors import UserError
from rmtools.files import parse_json
from rmtools.particles.arguments import check_generator
from rmtools.serving.errors import BASE_URL, KEY_VARIABLE, Failures, NotFoundError, PassingError
from rmtools.serving.responses import Answer, ModelCard, read_answer, read_models
from rmtools.serving.threads import run_all

logger = logging.getLogger(__name__)

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
CONNECT_TIMEOUT, LIST_TIMEOUT = 10.0, 30.0


class Endpoint:
    """A server's ``/models`` and ``/completions``.

    Parameters
    ----------
    url : str
        Its base URL, with or without ``/v1``.
    rng : np.random.Generator
        Draws the jitter of the waiting times, and nothing else.
    concurrency : int
        Requests in flight at most.
    timeout : float
        Seconds that one request may take; generous, for where a server ignores seeds, sending the slow ones again
        would favour short steps.
    patience : float
        Seconds for which a failing request is tried again.

    Attributes
    ----------
    repeated : int
        Requests that were sent again so far.
    close : callable
        Closes the connections.
    """

    def __init__(
        self,
        url: str,
        rng: np.random.Generator,
        *,
        concurrency: int = 16,
        timeout: float = 600.0,
        patience: float = 300.0,
    ) -> None:
        check_generator(rng)
        for name, value in (("concurrency", concurrency), ("timeout", timeout)):
            if not value > 0:
                raise UserError(f"{name} must be positive, got {value}", "--concurrency 16, say")
        if not patience >= 0:
            raise UserError(f"patience must be at least 0, got {patience}", "0 gives up at the first failure")
        self.url = base_url(url)
        self.concurrency, self.timeout, self.patience = concurrency, timeout, patience
        self.repeated = 0
        self._rng = rng
        self._lock = threading.Lock()
        self._told: set[str] = set()
        key = api_key()
        self.failures = Failures(self.url, key, timeout)
        # Redirects are not followed: the key is for the host that was named, and for no other.
        try:
            self._client = httpx2.Client(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT), pool=None),
                limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
                follow_redirects=False,
            )
        except (ImportError, ValueError, OSError) as error:
            raise UserError(
                f"no connection can be set up: {self.failures.clean(str(error)) or type(error).__name__}",
                "look at the environment: ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, SSL_CERT_FILE, SSL_CERT_DIR",
            ) from None
        # Also when nobody calls close, at the latest when the program ends.
        self.close = weakref.finalize(self, self._client.close)

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an Endpoint holds open connections and cannot be copied or saved: make another one")

    def tell(self, kind: str, message: str) -> None:
        """Say ``message``, once for all messages of this ``kind``."""
        with self._lock:
            new = kind not in self._told
            self._told.add(kind)
        if new:
            logger.warning("%s: %s", self.url, message)

    def models(self) -> list[ModelCard]:
        """Return the models that the server has.

        Raises
        ------
        UserError
            Where no server answers (at once); NotFoundError where one does that has no such list.
        """
        return self._patiently(
            "GET", "/models", None, "models", threading.Event(), read=read_models, first=True
        )

    def ask(
        self,
        body: Mapping[str, Any],
        request_id: str,
        stop: threading.Event | None = None,
        *,
        first: bool = False,
    ) -> Answer:
        """Send one completions request until it is answered; ``stop`` ends the waiting from outside.

        At the ``first`` contact only a server that says it is busy is waited for.

        Raises
        ------
        UserError
            Where it cannot be answered, or not within ``patience``.
        """
        return self._patiently(
            "POST",
            "/completions",
            body,
            request_id,
            stop or threading.Event(),
            read=read_answer,
            first=first,
        )

    def ask_all(
        self, bodies: Sequence[Mapping[str, Any]], ids: Sequence[str], *, first: bool = False
    ) -> list[Answer]:
        """Send many requests, ``concurrency`` at a time; return their answers in the order of the requests.

        Raises
        ------
        UserError
            The first failure; the rest are abandoned.
        """
        jobs = [partial(self.ask, body, i, first=first) for body, i in zip(bodies, ids, strict=True)]
        return run_all(jobs, self.concurrency)

    def _patiently(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        request_id: str,
        stop: threading.Event,
        *,
        read: Any,
        first: bool = False,
    ) -> Any:
        deadline: float | None = None
        attempt = 0
        while True:
            try:
                return read(self._once(method, path, body, f"{request_id}-{attempt}"), self.failures.wrong)
            except PassingError as failure:
                # Patience is counted from the first failure: a long generation is none.
                deadline = deadline or time.monotonic() + self.patience
                wait = self._wait(attempt, failure.wait)
                early = first and not failure.busy
                if early and failure.kind in ("failing", "unreadable"):
                    raise NotFoundError(failure.error.fact, failure.error.fix) from None
                # A connection that was kept open may break under the next request, once; no more than that is luck.
                early = early and (failure.kind != "broken" or attempt >= 2)
                if early or time.monotonic() + wait > deadline:
                    raise failure.error from None
                self.tell(failure.kind, f"{failure.error.fact}; trying again for {self.patience:g} s")
                attempt += 1
                with self._lock:
                    self.repeated += 1
                if stop.wait(wait):
                    raise failure.error from None

    def _wait(self, attempt: int, asked: float) -> float:
        """Return how long to wait: exponential with jitter, and never less than the server ``asked`` for."""
        with self._lock:
            jitter = float(self._rng.uniform(0.5, 1.5))
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(attempt, 16)) * jitter
        return max(delay, asked + 0.1 * delay if asked else 0.0)

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None, request_id: str) -> Any:
        limit = self.timeout if body is not None else min(self.timeout, LIST_TIMEOUT)
        try:
            response, content = self._sent(method, path, body, request_id, limit)
        except httpx2.RequestError as error:
            # Not chained: what the library says may quote the request's headers.
            raise self.failures.unreachable(error) from None
        except UnicodeError:
            raise UserError(f"{self.url} is no address of a server", BASE_URL) from None
        if response.is_success:
            try:
                return parse_json(content.decode())
            except ValueError:
                raise self.failures.wrong("it answers something that is not JSON") from None
        raise self._explained(self.failures.failed(response, content, path), path)

    def _sent(
        self, method: str, path: str, body: Mapping[str, Any] | None, request_id: str, limit: float
    ) -> tuple[httpx2.Response, bytes]:
        """Send a request; return the response and its content, all of it within ``limit`` seconds.

        The library's own limits are of every read by itself: a server that sends a byte now and then would never meet one.
        """
        end = time.monotonic() + limit
        timeout = httpx2.Timeout(limit, connect=min(limit, CONNECT_TIMEOUT), pool=None)
        given: dict[str, Any] = {"json": body, "headers": {"X-Request-Id": request_id}, "timeout": timeout}
        content = bytearray()
        with self._client.stream(method, self.url + path, **given) as response:
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("the whole answer took too long")
        return response, bytes(content)

    def _explained(self, error: Exception, path: str) -> Exception:
        """Return ``error``, with the models that the server has where it may be the model that is missing."""
        if not isinstance(error, NotFoundError) or path == "/models":
            return error
        try:
            cards = read_models(self._once("GET", "/models", None, "models"), self.failures.wrong)
        except (PassingError, UserError):
            return error
        names = ", ".join(self.failures.clean(c.name) for c in cards[:10])
        return NotFoundError(error.fact, f"the models it has are: {names}")


def base_url(url: str) -> str:
    """Return the URL that ``/models`` and ``/completions`` are appended to.

    Raises
    ------
    UserError
        Where it is no URL of a server, or holds a password (which would be printed).

    >>> base_url("http://localhost:8000/"), base_url("https://host/openai/v3/completions")
    ('http://localhost:8000/v1', 'https://host/openai/v3')
    """
    try:
        parts = urllib.parse.urlsplit(url.strip())
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise UserError(f"the address of the server cannot be read: {error}", BASE_URL) from None
    if "@" in url or parts.query or parts.fragment:
        raise UserError(
            "the address of the server holds more than host and path: messages print it, so it must hold no secret",
            f"leave user, password and query out; an API key goes into {KEY_VARIABLE} in the environment",
        )
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in url.strip()):
        raise UserError(f"{url!r} is no address of a server", BASE_URL)
    path = parts.path.rstrip("/").removesuffix("/completions") or "/v1"
    shown = f"[{host}]" if ":" in host else host
    found = f"{parts.scheme}://{shown}{f':{port}' if port else ''}{path}"
    try:
        httpx2.URL(found)
    except (httpx2.InvalidURL, UnicodeError):
        raise UserError(f"{url!r} is no address of a server", BASE_URL) from None
    return found


def api_key() -> str:
    """Return the key from the environment, or nothing; raises ``UserError`` where it cannot be one."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not all("!" <= c <= "~" for c in key):
        raise UserError(
            f"{KEY_VARIABLE} holds characters that no API key has",
            "look for spaces, quotes and line breaks in it",
        )
    return key

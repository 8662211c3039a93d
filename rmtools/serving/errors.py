"""What can go wrong between here and a completions endpoint, each with its reason and what to do about it.

No message quotes a request, and the API key is cut out of whatever the server says back.
"""

import email.utils
import time
import urllib.parse
from typing import Any

import httpx2

from rmtools.errors import UserError
from rmtools.files import parse_json

KEY_VARIABLE = "OPENAI_API_KEY"
BASE_URL = "name its base URL: http://localhost:8000/v1, say"
PASSING = (408, 409, 425, 429)
# What a server, or a gateway before it, says while it loads its model.
LOADING = (502, 503, 504)
CONTEXT = (
    "context length",
    "maximum context",
    "context_length",
    "context size",
    "exceed_context",
    "too long",
)


class RefusedError(UserError):
    """The server understood a request and will not have it (400, 413 or 422)."""


class NotFoundError(UserError):
    """The server has no such path, or no such model (404); or it fails at the first contact."""


class PassingError(Exception):
    """A failure that waiting may mend.

    Parameters
    ----------
    error : UserError
        What to raise when it does not.
    kind : str
        What is said once of all failures of this kind.
    wait : float
        Seconds that the server asked to wait.
    busy : bool
        Whether a server was there and had no time: worth waiting for even at the first contact, when any other
        failure is a wrong address rather than bad luck.
    """

    def __init__(self, error: UserError, kind: str, wait: float = 0.0, busy: bool = False) -> None:
        super().__init__(error.fact)
        self.error, self.kind, self.wait, self.busy = error, kind, wait, busy


class Failures:
    """Makes the errors of one server.

    Parameters
    ----------
    url : str
    key : str
        The API key, or nothing.
    timeout : float
        Seconds that a request may take.
    """

    def __init__(self, url: str, key: str, timeout: float) -> None:
        self.url, self.key, self.timeout = url, key, timeout

    def __repr__(self) -> str:
        return f"Failures({self.url!r})"

    def unreachable(self, error: httpx2.RequestError) -> PassingError:
        """Return the failure of a request that got no answer."""
        if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
            return PassingError(
                UserError(
                    f"no server answers at {self.url}: {self.clean(str(error)) or 'the connection failed'}",
                    "start it (vllm serve MODEL, say), or look at the address and port of --server",
                ),
                "absent",
            )
        if isinstance(error, httpx2.TimeoutException):
            return PassingError(
                UserError(
                    f"the server at {self.url} did not answer within {self.timeout:g} s",
                    "ask for less at a time: a smaller --concurrency; or look at the server's log",
                ),
                "slow",
            )
        reason = self.clean(str(error)) or type(error).__name__
        return PassingError(
            UserError(
                f"the connection to the server at {self.url} broke: {reason}",
                "look whether the server still runs, and at its log",
            ),
            "broken",
        )

    def wrong(self, what: str) -> PassingError:
        """Return the failure of an answer that is not in the protocol."""
        return PassingError(
            UserError(
                f"the server at {self.url} is no OpenAI-compatible completions endpoint: {self.clean(what)}",
                BASE_URL,
            ),
            "unreadable",
        )

    def failed(self, response: httpx2.Response, content: bytes, path: str) -> Exception:
        """Return the error for an answer that is none; ``content`` is what it says."""
        status, said = response.status_code, self.said(content)
        if response.is_redirect:
            target = urllib.parse.urlsplit(response.headers.get("location", ""))
            where = f"{target.scheme}://{target.hostname}" if target.hostname else "another path"
            return UserError(
                f"the server at {self.url} redirects to {self.clean(where)}, which is not followed: the API key is "
                "for the host that was named",
                "name the address it redirects to",
            )
        if status in (401, 403):
            fact = "refused the API key" if self.key else "asks for an API key"
            return UserError(
                f"the server at {self.url} {fact} ({status})",
                f"set {KEY_VARIABLE} in the environment to one that is valid there",
            )
        if status == 404:
            what = {"/models": "list of models"}.get(path, "completions, or not of the model asked for")
            return NotFoundError(f"the server at {self.url} has no {what} (404){said}", BASE_URL)
        wait = retry_after(response.headers.get("retry-after"))
        asks = f", and asks to wait {wait:.0f} s" if wait else ""
        if status == 429:
            return PassingError(
                UserError(
                    f"the server at {self.url} limits the rate of requests (429){asks}{said}",
                    "pass a smaller --concurrency, or wait and run again",
                ),
                "limited",
                wait,
                busy=True,
            )
        if status in PASSING or status >= 500:
            return PassingError(
                UserError(
                    f"the server at {self.url} fails ({status}){asks}{said}", "look at the server's log"
                ),
                "failing",
                wait,
                busy=status in LOADING,
            )
        if any(word in said.lower() for word in CONTEXT):
            return UserError(
                f"a prompt and its step do not fit into the context of the model at {self.url} ({status}){said}",
                "shorten the prompt, lower max_step_tokens, or serve the model with more context",
            )
        return RefusedError(
            f"the server at {self.url} refuses the request ({status}){said}", "look at the server's log"
        )

    def said(self, content: bytes) -> str:
        """Return the server's own words, for the end of a fact."""
        try:
            found: Any = parse_json(content.decode())
        except ValueError:
            return ""
        for name in ("error", "detail", "message"):
            if isinstance(found, dict) and name in found:
                found = found[name]
        return f": {self.clean(str(found))}" if found else ""

    def clean(self, text: str) -> str:
        """Return ``text`` on one line, short, and without the key, should the server have said it back."""
        forms = {self.key, repr(self.key)[1:-1], urllib.parse.quote(self.key, safe="")} - {""}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "***")
        # Escape sequences would be obeyed by the terminal.
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


def retry_after(value: str | None) -> float:
    """Return the seconds of a ``Retry-After`` header, given as a number or a date; 0 where it is neither.

    >>> retry_after("7"), retry_after(None), retry_after("soon")
    (7.0, 0.0, 0.0)
    """
    try:
        return max(0.0, float(value or 0.0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value or "").timestamp() - time.time())
    except ValueError:
        return 0.0

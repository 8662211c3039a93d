"""What can go wrong between here and a completions endpoint, with its reason and what to do about it.

No message quotes a request, and the API key is cut out of what the server says.
"""

import email.utils
import re
import time
import urllib.parse

import httpx2

from rmtools.errors import UserError
from rmtools.files import parse_json

KEY_VARIABLE = "OPENAI_API_KEY"
BASE_URL = "name its base URL, such as http://localhost:8000/v1"
LOG = "look at the server's log"
NAME_MODEL = f"name the model with `server_model`, or another server: {BASE_URL}"
PASSING = (408, 409, 425)
# What a server, or a gateway before it, says while it loads its model.
LOADING = (502, 503, 504)
CONTEXT = re.compile(r"context[ _](length|size)|maximum context|exceed_context|too long", re.IGNORECASE)


class RefusedError(UserError):
    """The server cannot do what was asked: it refuses (400, 404, 413, 422), fails, or answers something else."""


class PassingError(Exception):
    """A failure that waiting may mend.

    Parameters
    ----------
    error : UserError
        What to raise if it does not.
    kind : str
        Failures of one kind are logged once. "broken": the connection broke.
    wait : float
        Seconds that the server asked to wait.
    busy : bool
        Whether a server is there and has no time: worth waiting for even at the first contact.
    """

    def __init__(self, error: UserError, kind: str, wait: float = 0.0, busy: bool = False) -> None:
        super().__init__(error.fact)
        self.error, self.kind, self.wait, self.busy = error, kind, wait, busy


class ServerErrors:
    """Makes the errors of the server at ``url``; ``key`` may be empty."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key

    def unreachable(self, error: httpx2.RequestError, limit: float) -> PassingError:
        """Return the failure of a request without an answer within ``limit`` seconds."""
        reason = self.clean(str(error))
        if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
            fact = f"no server answers at {self.url}: {reason or 'the connection failed'}"
            fix = "start it (vllm serve MODEL, for example), or check its address and port"
            return PassingError(UserError(fact, fix), "absent")
        if isinstance(error, httpx2.TimeoutException):
            fact = f"the server at {self.url} did not answer within {limit:g} s"
            return PassingError(UserError(fact, f"lower `concurrency`, or {LOG}"), "slow")
        fact = f"the connection to the server at {self.url} broke: {reason or type(error).__name__}"
        return PassingError(UserError(fact, f"check that the server still runs, and {LOG}"), "broken")

    def unreadable(self, what: str) -> PassingError:
        """Return the failure of an answer that does not follow the protocol."""
        fact = f"the server at {self.url} is no OpenAI-compatible completions endpoint: {self.clean(what)}"
        return PassingError(RefusedError(fact, BASE_URL), "unreadable")

    def failed(self, response: httpx2.Response, content: bytes, path: str) -> Exception:
        """Return the error for a status that is no success; ``content`` is what the server says."""
        status, said, server = response.status_code, self._said(content), f"the server at {self.url}"
        wait = retry_after(response.headers.get("retry-after"))
        asks = f", and asks to wait {wait:.0f} s" if wait else ""
        if response.is_redirect:
            target = urllib.parse.urlsplit(response.headers.get("location", ""))
            where = f"{target.scheme}://{target.hostname}" if target.hostname else "another path"
            return UserError(
                f"{server} redirects to {self.clean(where)}, which is not followed: the API key is for the named host",
                "name the address it redirects to",
            )
        if status in (401, 403):
            fact = f"{server} {'refused the' if self.key else 'asks for an'} API key ({status})"
            return UserError(fact, f"set {KEY_VARIABLE} in the environment to a valid one")
        if status == 404:
            if path == "/models":
                return RefusedError(f"{server} has no list of models (404){said}", NAME_MODEL)
            return RefusedError(
                f"{server} has no completions, or not of the model asked for (404){said}", BASE_URL
            )
        if status == 429:
            fact = f"{server} limits the rate of requests (429){asks}{said}"
            error = UserError(fact, "lower `concurrency`, or run again later")
            return PassingError(error, "limited", wait, busy=True)
        if status in PASSING or status >= 500:
            loading = status in LOADING
            error = (UserError if loading else RefusedError)(f"{server} fails ({status}){asks}{said}", LOG)
            return PassingError(error, "failing", wait, busy=loading)
        if CONTEXT.search(said):
            return UserError(
                f"a prompt and its step do not fit into the context of the model at {self.url} ({status}){said}",
                "shorten the prompt, lower max_step_tokens, or serve the model with more context",
            )
        return RefusedError(f"{server} refuses the request ({status}){said}", LOG)

    def _said(self, content: bytes) -> str:
        """Return the server's own words, for the end of a fact."""
        try:
            found = parse_json(content.decode())
        except ValueError:
            return ""
        for name in ("error", "detail", "message"):
            if isinstance(found, dict) and name in found:
                found = found[name]
        return f": {self.clean(str(found))}" if found else ""

    def clean(self, text: str) -> str:
        """Return ``text`` on one line, short, without the key and without what a terminal would obey."""
        forms = {self.key, repr(self.key)[1:-1], urllib.parse.quote(self.key, safe="")} - {""}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "***")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


def retry_after(value: str | None) -> float:
    """Return the seconds of a ``Retry-After`` header, a number or a date; 0 if it is neither.

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

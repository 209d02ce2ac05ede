"""Send `POST /v1/embeddings` requests: address, API key, and the meaning of each response.

content                 200: the body
RetryableError          worth another attempt (429, 408, 409, 5xx, timeouts, dropped connections, truncated bodies)
RequestRefusedError     the server rejects these texts (400, 413, 422)
ModelError              no attempt will help (401, 403, 404, an account without credit, a redirect)
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import orjson

from embedcli import __version__
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.encoders.hosted.retry import Clock, RetryableError, parse_retry_after

if TYPE_CHECKING:
    import httpx2

DEFAULT_BASE_URL = "https://api.openai.com/v1"
CONNECT_TIMEOUT_SECONDS = 15.0
# 2,048 lists of 8,192 floats are about 350 MB; no correct response is larger.
MAX_RESPONSE_BYTES = 1 << 30
MAX_ERROR_CHARACTERS = 300


# Messages and hints for statuses where no other attempt will help.
FINAL_STATUS_ERRORS = {
    401: ("{host} does not accept the key in OPENAI_API_KEY", "set OPENAI_API_KEY to a key of this server"),
    402: ("{host} requires payment", "add credit, then run the same command to go on"),
    403: ("{host} does not let this key use {model}", "check the key's rights, or choose another --model"),
    404: ("{url} does not know this model or path", "check --model and --base-url; most base URLs end in /v1"),
}
MISSING_KEY_ERROR = ("{host} requires an API key", "export OPENAI_API_KEY=...")
OTHER_STATUS_ERROR = ("{url} refuses the request", "check --model and --base-url")


class RequestRefusedError(Exception):
    """The server rejects the request. The message is the server's own."""


@dataclass(frozen=True)
class ServerAddress:
    """Address of the server. `url` and `host` may be shown; the other parts may hold secrets."""

    url: str
    host: str
    is_loopback: bool
    target_path: bytes | None = field(default=None, repr=False)
    basic_credentials: str = field(default="", repr=False)

    @property
    def base_url(self) -> str:
        """The value for --base-url, without user, password and query."""
        return self.url.removesuffix("/embeddings")

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own server, which always requires a key."""
        return self.host == "api.openai.com"


def parse_server_address(job: Job) -> ServerAddress:
    """Parse --base-url, else OPENAI_BASE_URL, else OpenAI's address. Raises UsageError if it is not an http(s) URL."""
    base = (job.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL).strip()
    hint = f"give an address such as {DEFAULT_BASE_URL} or http://localhost:8080/v1"
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError("--base-url is not a web address", hint) from None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError("--base-url is not a web address that starts with http:// or https://", hint)
    path = parts.path.rstrip("/")
    path = path if path.endswith("/embeddings") else f"{path}/embeddings"
    name = f"[{host}]" if ":" in host else host
    place = f"{name}:{port}" if port is not None else name
    basic = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        basic = base64.b64encode(pair.encode()).decode()
    # httpx2 logs the URL of each request, so a query that may hold a key is kept out of it.
    target = f"{path}?{parts.query}".encode() if parts.query else None
    return ServerAddress(f"{parts.scheme}://{place}{path}", host, _is_loopback(host), target, basic)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_api_key(where: ServerAddress) -> str:
    """Read OPENAI_API_KEY; "" if the server may not need one. Raises UsageError if a key is missing or unusable."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and where.is_openai:
        raise UsageError("OPENAI_API_KEY is not set", "export OPENAI_API_KEY=..., or give another server's --base-url")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError("OPENAI_API_KEY holds characters that no key has", "set it to the key alone, without quotes")
    return key


class EmbeddingsClient:
    """A connection pool to one address. The API key is in its headers and in no message."""

    def __init__(
        self, where: ServerAddress, key: str, *, model: str, timeout: float, max_connections: int, clock: Clock
    ) -> None:
        import httpx2

        self.address = where
        self._model = model
        self._timeout = timeout
        self._clock = clock
        self._keyed = bool(key)
        self._secrets = _secrets(where, key)
        self._client = httpx2.Client(
            headers=_build_headers(where, key),
            timeout=httpx2.Timeout(timeout, connect=min(CONNECT_TIMEOUT_SECONDS, timeout), pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=max_connections),
            # Never use a proxy for a server on this machine, whatever the environment says.
            trust_env=not where.is_loopback,
        )

    def post(self, body: bytes) -> bytes:
        """Send `body` and return the content of a successful response. Errors: see the module docstring."""
        with self._transport():
            extensions = {"target": self.address.target_path} if self.address.target_path else {}
            with self._client.stream("POST", self.address.url, content=body, extensions=extensions) as response:
                content = self._read(response)
        if 200 <= response.status_code < 300:
            return content
        raise self._error_for_status(response.status_code, response.headers, content)

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    def redact(self, text: str) -> str:
        """Remove the API key, other secrets of the address and control characters from `text`."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = re.sub(r"//[^/@\s]+@", "//***@", text)
        return "".join(c if c.isprintable() else " " for c in text)

    def _read(self, response: httpx2.Response) -> bytes:
        deadline = self._clock.monotonic() + self._timeout
        parts: list[bytes] = []
        size = 0
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if self._clock.monotonic() > deadline:
                raise RetryableError(
                    f"{self.address.host} sent its answer too slowly (over {self._timeout:g} s)", "lost"
                )
            if size > MAX_RESPONSE_BYTES:
                raise RetryableError(
                    f"{self.address.host} sent an answer of more than {MAX_RESPONSE_BYTES >> 20} MB", "wrong"
                )
        return b"".join(parts)

    @contextmanager
    def _transport(self) -> Iterator[None]:
        import httpx2

        try:
            yield
        except httpx2.TimeoutException:
            raise RetryableError(f"{self.address.host} did not answer within {self._timeout:g} s", "lost") from None
        except httpx2.RequestError as error:
            why = self.redact(str(error)) or type(error).__name__
            raise RetryableError(f"the connection to {self.address.host} failed: {why}", "lost") from None

    def _error_for_status(self, status: int, headers: Mapping[str, str], content: bytes) -> Exception:
        text, code = parse_error_body(content)
        said = self.redact(text)
        host = self.address.host
        if status in (400, 413, 422):
            return RequestRefusedError(f"{status}: {said}" if said else f"{status}")
        if status == 429 and code == "insufficient_quota":
            hint = "add credit, then run the same command to go on"
            return ModelError(f"the account at {host} has no credit left: {said}", hint)
        if status in (408, 409, 425, 429) or status >= 500:
            return RetryableError(
                f"{host} answered {status}: {said}", "busy", parse_retry_after(headers, self._clock.unix_time())
            )
        return ModelError(*self._final_error(status, headers, said))

    def _final_error(self, status: int, headers: Mapping[str, str], said: str) -> tuple[str, str]:
        url = self.address.url
        if 300 <= status < 400:
            to = self.redact(headers.get("location", "").split("?")[0].removesuffix("/embeddings"))
            return f"{url} redirects ({status}), and redirects are not followed", f"give --base-url {to} itself"
        what, hint = FINAL_STATUS_ERRORS.get(status, OTHER_STATUS_ERROR)
        if status == 401 and not self._keyed:
            what, hint = MISSING_KEY_ERROR
        return f"{what.format(host=self.address.host, url=url, model=self._model)} ({status}): {said}", hint


def _build_headers(where: ServerAddress, key: str) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "User-Agent": f"embedcli/{__version__}"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    elif where.basic_credentials:
        headers["Authorization"] = f"Basic {where.basic_credentials}"
    return headers


def _secrets(where: ServerAddress, key: str) -> tuple[str, ...]:
    query = where.target_path.decode().partition("?")[2] if where.target_path else ""
    values = [part.partition("=")[2] for part in query.split("&")]
    password = base64.b64decode(where.basic_credentials).decode().partition(":")[2] if where.basic_credentials else ""
    found = {key, where.basic_credentials, password, query, *values, *map(unquote, values)}
    return tuple(sorted((secret for secret in found if len(secret) > 3), key=len, reverse=True))


def parse_error_body(content: bytes) -> tuple[str, str]:
    """Parse an error body into message and code: OpenAI's `{"error": {...}}`, and the forms of other servers."""
    try:
        body = orjson.loads(content)
    except ValueError:
        return _shorten(re.sub(r"<[^>]*>", " ", content[:4096].decode("utf-8", "replace"))), ""
    if not isinstance(body, dict):
        return _shorten(str(body)), ""
    inner: Any = body.get("error", body)
    if not isinstance(inner, dict):
        return _shorten(str(inner)), ""
    text = inner.get("message") or inner.get("detail") or inner.get("error") or ""
    text = text if isinstance(text, str) else orjson.dumps(text).decode()
    return _shorten(text), str(inner.get("code") or inner.get("type") or "")


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:MAX_ERROR_CHARACTERS]}..."

"""Send `POST /v1/embeddings` requests: address, API key, and the meaning of each response.

content                 200: the body
RetryableError          worth another attempt (429, 408, 409, 5xx, timeouts, dropped connections, truncated bodies)
RequestRefusedError     the server rejects these texts (400, 413, 422)
ModelError              no attempt will help (401, 403, 404, an account without credit, a redirect elsewhere)

A redirect that keeps method and body (307, 308) is followed on the same server only: the key goes to no other one.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from embedcli import __version__
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.encoders.hosted.known_hosts import HostDialect, find_dialect
from embedcli.encoders.hosted.proxies import PROXY_LOGIN_HINT, PROXY_LOGIN_STATUS
from embedcli.encoders.hosted.response import ReportedError, parse_error_body
from embedcli.encoders.hosted.retry import Clock, FailureKind, RetryableError, Suspicion, parse_retry_after
from embedcli.encoders.hosted.transport import HttpTransport

DEFAULT_BASE_URL = "https://api.openai.com/v1"
MAX_REDIRECTS = 5
# 504, and 524 of Cloudflare: a proxy has waited for the server in vain.
GATEWAY_TIMEOUTS = (504, 524)
DEFAULT_PORTS = {"http": 80, "https": 443}

# Messages and hints for statuses where no other attempt will help.
FINAL_STATUS_ERRORS = {
    401: ("{host} does not accept the key in OPENAI_API_KEY", "set OPENAI_API_KEY to a key of this server"),
    402: ("{host} requires payment", "add credit, then run the same command to go on"),
    403: ("{host} does not let this key use {model}", "check the key's rights, or choose another --model"),
    PROXY_LOGIN_STATUS: ("no connection to {route}: the proxy requires a login", PROXY_LOGIN_HINT),
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
    target_path: str | None = field(default=None, repr=False)
    basic_credentials: str = field(default="", repr=False)

    @property
    def base_url(self) -> str:
        """The value for --base-url, without user, password and query."""
        return self.url.removesuffix("/embeddings")

    @property
    def place(self) -> str:
        """Host, and the port if it is not the default one, for messages."""
        parts = urlsplit(self.url)
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if parts.port in (None, DEFAULT_PORTS[parts.scheme]) else f"{name}:{parts.port}"

    @property
    def dialect(self) -> HostDialect:
        """How requests to this server differ from those to OpenAI."""
        return find_dialect(self.host)

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own server, which always requires a key."""
        return self.host == "api.openai.com"


def parse_server_address(job: Job) -> ServerAddress:
    """Parse --base-url, else OPENAI_BASE_URL, else OpenAI's address. Raises UsageError if it is not an http(s) URL."""
    if job.base_url is not None and not job.base_url.strip():
        raise UsageError("--base-url is empty", "give the address of the server, or leave it out")
    base = (job.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL).strip()
    hint = f"give an address such as {DEFAULT_BASE_URL} or http://localhost:8080/v1"
    try:
        parts = urlsplit(base)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UsageError("--base-url is not a web address", hint) from None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError("--base-url is not a web address that starts with http:// or https://", hint)
    path = parts.path.rstrip("/")
    path = path if path.endswith("/embeddings") else f"{path}/embeddings"
    basic = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        basic = base64.b64encode(pair.encode()).decode()
    place = _describe_place(parts._replace(path=path))
    return ServerAddress(host=host, is_loopback=_is_loopback(host), basic_credentials=basic, **place)


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
        self.address = where
        self._destination = where
        self._model = model
        self._timeout = timeout
        self._clock = clock
        self._keyed = bool(key)
        self._secrets = _secrets(where, key)
        self._transport = HttpTransport(
            where.place,
            _build_headers(where, key),
            self.redact,
            # Never use a proxy for a server on this machine, whatever the environment says.
            use_proxy=not where.is_loopback,
            max_connections=max_connections,
            clock=clock,
        )

    def post(self, body: bytes, timeout: float | None = None) -> bytes:
        """Send a request and follow redirects on the same server.

        Args:
            body: The body of the request.
            timeout: Seconds to wait for the whole response; None for the timeout of the job.

        Returns:
            The content of a successful response.

        Raises:
            RetryableError, RequestRefusedError, ModelError: See the module docstring.
        """
        destination = self._destination
        for _ in range(MAX_REDIRECTS):
            status, headers, content = self._send(body, destination, timeout or self._timeout)
            if status not in (307, 308):
                break
            destination = self._follow_redirect(destination, status, headers)
            if status == 308:
                self._destination = destination
        if 200 <= status < 300:
            return content
        raise self.error_for_status(status, headers, *parse_error_body(content))

    def _send(self, body: bytes, where: ServerAddress, timeout: float) -> tuple[int, Mapping[str, str], bytes]:
        return self._transport.post(where.url, where.target_path, body, timeout)

    def _follow_redirect(self, where: ServerAddress, status: int, headers: Mapping[str, str]) -> ServerAddress:
        parts = _split_location(where, headers)
        if parts is None or not _is_same_server(urlsplit(where.url), parts):
            raise ModelError(
                f"{where.url} redirects ({status}) to another server, and the key must not go there",
                f"give --base-url {self._describe_location(headers)} itself, if you trust it",
            )
        return replace(where, **_describe_place(parts))

    def close(self) -> None:
        """Close the idle connections."""
        self._transport.close()

    def redact(self, text: str) -> str:
        """Remove the API key, other secrets of the address and control characters from `text`."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = re.sub(r"//[^/@\s]+@", "//***@", text)
        return "".join(c if c.isprintable() else " " for c in text)

    def error_for_status(self, status: int, headers: Mapping[str, str], text: str, code: str) -> Exception:
        """Return the error that a status means, see the module docstring.

        Args:
            status: The HTTP status, or the one that a server reports in the body of a 200.
            headers: The headers of the response.
            text: The message in the body, as `parse_error_body` returns it.
            code: The code in the body.
        """
        said = self.redact(text)
        host = self.address.place
        if status in (400, 413, 422):
            return RequestRefusedError(f"{status}: {said}" if said else f"{status}")
        if status == 429 and code == "insufficient_quota":
            hint = "add credit, then run the same command to go on"
            return ModelError(f"the account at {host} has no credit left: {said}", hint)
        if status in (408, 409, 425, 429) or status >= 500:
            route = self._transport.describe_route(self.address.url)
            after = parse_retry_after(headers, self._clock.unix_time())
            suspicion: Suspicion = "none"
            if status >= 500 and after is None:
                suspicion = "timeout" if status in GATEWAY_TIMEOUTS else "failure"
            return RetryableError(f"{route} answered {status}: {said}", "busy", after, suspicion=suspicion)
        return ModelError(*self._final_error(status, headers, said))

    def error_for_report(self, report: ReportedError, kind: FailureKind) -> Exception:
        """Return the error, of some kind, for an error that the server reports in a response of status 200.

        Some gateways put the status of the server behind them into `code`: it counts as if it were the status.
        """
        if report.code.isascii() and report.code.isdigit() and 400 <= int(report.code) <= 599:
            return self.error_for_status(int(report.code), {}, report.text, "")
        reason = f"the answer of {self.address.place} {self.redact(str(report))}"
        return RetryableError(reason, kind, suspicion="failure")

    def _final_error(self, status: int, headers: Mapping[str, str], said: str) -> tuple[str, str]:
        url = self.address.url
        if 300 <= status < 400:
            why = "too often" if status in (307, 308) else "in a way that drops the texts"
            return f"{url} redirects ({status}) {why}", f"give --base-url {self._describe_location(headers)} itself"
        what, hint = FINAL_STATUS_ERRORS.get(status, OTHER_STATUS_ERROR)
        if status == 401 and not self._keyed:
            what, hint = MISSING_KEY_ERROR
        route = self._transport.describe_route(url)
        message = what.format(host=self.address.place, route=route, url=url, model=self._model)
        return f"{message} ({status}): {said}", hint

    def _describe_location(self, headers: Mapping[str, str]) -> str:
        """The value for --base-url that a redirect names, without query and secrets."""
        parts = _split_location(self.address, headers)
        if parts is None:
            return "the final address"
        path = parts.path.rstrip("/").removesuffix("/embeddings")
        return self.redact(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{path}")


def _split_location(where: ServerAddress, headers: Mapping[str, str]) -> SplitResult | None:
    """The address that a redirect names; None if it names none."""
    try:
        parts = urlsplit(urljoin(where.url, headers.get("location", "")))
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.scheme in DEFAULT_PORTS and parts.hostname else None


def _is_same_server(old: SplitResult, new: SplitResult) -> bool:
    """Whether a redirect stays on the server: same host and port, or from http to https by their default ports."""
    ports = [parts.port or DEFAULT_PORTS[parts.scheme] for parts in (old, new)]
    is_upgrade = (old.scheme, new.scheme) == ("http", "https") and ports == [80, 443]
    return old.hostname == new.hostname and (is_upgrade or (old.scheme == new.scheme and ports[0] == ports[1]))


def _describe_place(parts: SplitResult) -> dict[str, Any]:
    """URL and target of a web address, as fields of `ServerAddress`."""
    name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    place = f"{name}:{parts.port}" if parts.port is not None else name
    target = f"{parts.path}?{parts.query}" if parts.query else None
    return {"url": f"{parts.scheme}://{place}{parts.path}", "target_path": target}


def _build_headers(where: ServerAddress, key: str) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "User-Agent": f"embedcli/{__version__}"}
    header = where.dialect.key_header
    if key:
        headers[header] = f"Bearer {key}" if header == "Authorization" else key
    elif where.basic_credentials:
        headers["Authorization"] = f"Basic {where.basic_credentials}"
    return headers


def _secrets(where: ServerAddress, key: str) -> tuple[str, ...]:
    query = where.target_path.partition("?")[2] if where.target_path else ""
    values = [part.partition("=")[2] for part in query.split("&")]
    password = base64.b64decode(where.basic_credentials).decode().partition(":")[2] if where.basic_credentials else ""
    found = {key, where.basic_credentials, password, query, *values, *map(unquote, values)}
    return tuple(sorted((secret for secret in found if len(secret) > 3), key=len, reverse=True))

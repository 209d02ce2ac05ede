"""Proxies that the environment or the system names: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY."""

from __future__ import annotations

import http.client
import ssl
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    from urllib3 import ProxyManager

PROXY_LOGIN_STATUS = 407
PROXY_HINT = "check the proxy in HTTPS_PROXY or HTTP_PROXY, or add the host to NO_PROXY"
PROXY_LOGIN_HINT = "give user and password in HTTPS_PROXY or HTTP_PROXY (http://USER:PASSWORD@HOST:PORT)"


class ProxyLoginRequiredError(OSError):
    """A proxy refuses to connect without another user or password (407)."""


def find_proxy(server: str) -> str | None:
    """Return the URL of the proxy for a server (`https://host:port`); None if there is none. It may hold a password."""
    parts = urlsplit(server)
    proxies = getproxies()
    if proxy_bypass(parts.netloc):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def describe_proxy(proxy: str) -> str:
    """Return host and port of the URL of a proxy, without user and password."""
    return urlsplit(proxy).netloc.rpartition("@")[2]


def open_proxy_pool(proxy: str, max_connections: int, context: ssl.SSLContext) -> ProxyManager:
    """Open the connections that go by a proxy.

    Args:
        proxy: The URL of the proxy.
        max_connections: How many connections are kept open.
        context: Checks the certificates of servers.
    """
    from urllib3 import HTTPSConnectionPool, make_headers, proxy_from_url
    from urllib3.connection import HTTPSConnection

    class TunnelConnection(HTTPSConnection):
        response_class = _TunnelResponse

    class TunnelPool(HTTPSConnectionPool):
        ConnectionCls = TunnelConnection

    login = urlsplit(proxy)
    pair = f"{unquote(login.username)}:{unquote(login.password or '')}" if login.username else None
    headers = make_headers(proxy_basic_auth=pair)
    pool = proxy_from_url(proxy, maxsize=max_connections, ssl_context=context, proxy_headers=headers)
    pool.pool_classes_by_scheme = {**pool.pool_classes_by_scheme, "https": TunnelPool}
    return pool


class _TunnelResponse(http.client.HTTPResponse):
    """The response to CONNECT. The libraries keep its status in the text of an error only."""

    def _read_status(self) -> tuple[str, int, str]:
        version, status, reason = super()._read_status()  # type: ignore[misc]
        if status == PROXY_LOGIN_STATUS:
            raise ProxyLoginRequiredError(f"{status} {reason.strip()}")
        return version, status, reason

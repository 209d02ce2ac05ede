"""Connections that cannot be made: unknown names, proxies, TLS; and how messages name the server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.encoders.hosted.client import parse_server_address
from embedcli.encoders.hosted.encoder import load_hosted_encoder
from fake_server import FakeServer
from hosted import FakeClock, job_for


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@contextmanager
def tunnel_that_answers(response: bytes) -> Iterator[str]:
    """A proxy that answers every CONNECT with the same bytes and closes; yields host:port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(response)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


def fail_to_load(job: Job, clock: FakeClock | None = None, notes: list[str] | None = None) -> ModelError:
    said = notes if notes is not None else []
    with pytest.raises(ModelError) as caught:
        load_hosted_encoder(job, said.append, clock=clock or FakeClock())
    return caught.value


def hosted_job(base_url: str) -> Job:
    return Job(("in",), "out", model="openai:x", base_url=base_url)


def test_an_unknown_name_ends_after_a_few_tries(environment: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    notes: list[str] = []
    error = fail_to_load(hosted_job("http://no-such-host.invalid/v1"), clock, notes)
    assert error.message.startswith("the name no-such-host.invalid is unknown: ")
    assert "check the name of the host in --base-url" in error.hint
    assert clock.time - 1000 <= 10
    assert 2 <= len(clock.waits) <= 10
    assert any("the name no-such-host.invalid is unknown" in note for note in notes)


def test_a_proxy_that_cannot_be_reached_is_named(environment: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        proxy = f"127.0.0.1:{taken.getsockname()[1]}"
    for scheme in ("http", "https"):
        environment.setenv(f"{scheme}_proxy", f"http://me:hidden-password@{proxy}")
        error = fail_to_load(hosted_job(f"{scheme}://192.0.2.1/v1"))
        assert error.message.startswith(f"the connection to 192.0.2.1 (by the proxy {proxy}) failed: ")
        assert error.hint.startswith("check the proxy in HTTPS_PROXY or HTTP_PROXY")
        assert "hidden" not in str(error)


def test_a_proxy_that_refuses_a_tunnel_is_named(environment: pytest.MonkeyPatch) -> None:
    with tunnel_that_answers(b"HTTP/1.1 502 Bad Gateway\r\n\r\n") as proxy:
        environment.setenv("https_proxy", f"http://{proxy}")
        error = fail_to_load(hosted_job("https://192.0.2.1/v1"))
    assert f"(by the proxy {proxy}) failed: " in error.message
    assert "502" in error.message


def test_a_tunnel_that_needs_a_login_stops_at_once(environment: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    with tunnel_that_answers(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy:
        environment.setenv("https_proxy", f"http://{proxy}")
        error = fail_to_load(hosted_job("https://192.0.2.1/v1"), clock)
    assert error.message == (
        f"no connection to 192.0.2.1 (by the proxy {proxy}): the proxy requires a login "
        "(407 Proxy Authentication Required)"
    )
    assert error.hint.startswith("give user and password in HTTPS_PROXY")
    assert clock.waits == []


def test_a_proxy_without_a_tunnel_that_needs_a_login_stops_at_once(environment: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    head = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with tunnel_that_answers(head) as proxy:
        environment.setenv("http_proxy", f"http://{proxy}")
        error = fail_to_load(hosted_job("http://192.0.2.1/v1"), clock)
    assert f"(by the proxy {proxy}): the proxy requires a login (407)" in error.message
    assert error.hint.startswith("give user and password in HTTPS_PROXY")
    assert clock.waits == []


def test_https_to_a_server_without_tls_says_so(environment: pytest.MonkeyPatch, server: FakeServer) -> None:
    clock = FakeClock()
    job = job_for(server, base_url=server.base_url.replace("http:", "https:"))
    error = fail_to_load(job, clock)
    assert error.message == f"{server.place} does not answer in TLS"
    assert error.hint == "try http:// instead of https:// in --base-url"
    assert clock.waits == []


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://api.example.com/v1", "api.example.com"),
        ("https://api.example.com:443/v1", "api.example.com"),
        ("http://api.example.com:443/v1", "api.example.com:443"),
        ("http://localhost:8080/v1", "localhost:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("http://[::1]", "[::1]"),
    ],
)
def test_messages_name_the_port_unless_it_is_the_default(url: str, place: str) -> None:
    assert parse_server_address(hosted_job(url)).place == place

"""Which client serves an address: pyarrow's own for s3:// and gs://, fsspec's for hf://, az:// and http(s)://."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embedcli.core.errors import UsageError
from embedcli.storage.errors import CREDENTIALS, InputRefused, family, reaching
from embedcli.storage.url_redaction import mask_secrets, whole

if TYPE_CHECKING:
    import pyarrow.fs as pafs

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https")
# A server that does not answer at all is given up after a minute or so: ATTEMPTS x REQUEST_SECONDS.
CONNECT_SECONDS = 10
REQUEST_SECONDS = 20
ATTEMPTS = 3
# gs:// counts no attempts: it tries again for so long.
RETRY_SECONDS = 10
# What fsspec needs, and the extra that brings it.
NEEDS = {"http": ("aiohttp", "http"), "az": ("adlfs", "azure")}


@dataclass(frozen=True)
class Client:
    """One server's files. `name` makes an address the name by which `fs` knows it.

    `raw` is the fsspec file system inside `fs`, None for pyarrow's own. `lists`: whether folders can be listed.
    """

    fs: pafs.FileSystem
    name: Callable[[str], str]
    raw: Any = None
    lists: bool = True
    writes: bool = True


def client_of(path: str) -> Client:
    """The client for an address. UsageError for a scheme nobody serves, or with the extra that is missing."""
    kind = family(path)
    if kind not in ("s3", "gs", "az", "hf", "http"):
        near = get_close_matches(kind, SCHEMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}:// ? " if near else ""
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        hint = "write the path without file://" if kind == "file" else f"{hint}addresses begin with {known}"
        raise UsageError(f"{mask_secrets(path)}: {kind}:// addresses are not known", hint)
    if kind == "hf" and "/" not in path.partition("://")[2].rstrip("/").removeprefix("datasets/"):
        raise UsageError(f"{mask_secrets(path)}: names no repository", "write it as hf://datasets/OWNER/NAME/PATH")
    if kind in ("s3", "gs"):
        return _own(kind, _bucket(path))
    return _fsspec(kind, _origin(kind, path))


def _bucket(path: str) -> str:
    place = path.partition("://")[2].partition("/")[0]
    if "@" in place:
        raise UsageError(
            f"{mask_secrets(path)}: credentials in an address are not read",
            "set AWS_ACCESS_KEY_ID and the like instead",
        )
    if not place:
        raise UsageError(f"{mask_secrets(path)}: names no bucket", "write it as s3://BUCKET/PATH")
    return place


def _origin(kind: str, path: str) -> str:
    """What addresses must have in common to be served by one client."""
    return "" if kind == "hf" else whole(path) if kind == "az" else urlsplit(whole(path)).scheme


def _after_scheme(path: str) -> str:
    return path.partition("://")[2].rstrip("/")


@lru_cache(maxsize=64)
def _own(kind: str, bucket: str) -> Client:
    address = f"{kind}://{bucket}"
    with reaching(address):
        return Client(_s3(bucket) if kind == "s3" else _gs(), _after_scheme)


def _s3(bucket: str) -> pafs.FileSystem:
    """Credentials by the AWS rules: environment, shared config and its AWS_PROFILE, the machine's role; never none."""
    import pyarrow.fs as pafs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    settings: dict[str, Any] = {}
    if endpoint:
        split = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        settings = {"scheme": split.scheme, "endpoint_override": split.netloc + split.path.rstrip("/")}
    elif not region:
        region = _region_of(bucket)
    return pafs.S3FileSystem(
        region=region or None,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # Parts of an upload go out one after another straight from the spooled file, without a copy in memory.
        background_writes=False,
        # A small object is one PUT instead of a multipart upload of three requests.
        allow_delayed_open=True,
        **settings,
    )


def _region_of(bucket: str) -> str | None:
    """Where a bucket of Amazon's lies; None if nobody says, and then the AWS rules decide."""
    import pyarrow.fs as pafs

    try:
        return str(pafs.resolve_s3_region(bucket))
    except OSError:
        return None


def _gs() -> pafs.FileSystem:
    import pyarrow.fs as pafs

    limit = timedelta(seconds=RETRY_SECONDS)
    host = os.environ.get("STORAGE_EMULATOR_HOST")
    if host:
        split = urlsplit(host if "://" in host else f"http://{host}")
        return pafs.GcsFileSystem(
            anonymous=True, scheme=split.scheme, endpoint_override=split.netloc, retry_time_limit=limit
        )
    return pafs.GcsFileSystem(retry_time_limit=limit)


@lru_cache(maxsize=64)
def _fsspec(kind: str, origin: str) -> Client:
    import pyarrow.fs as pafs

    try:
        raw = _raw(kind, origin)
    except ImportError as error:
        package, extra = NEEDS.get(kind, ("huggingface_hub", ""))
        raise UsageError(
            f"{kind}:// addresses need {package}, which is not installed",
            f"pip install 'embedcli[{extra}]'" if extra else f"pip install --upgrade {package}",
        ) from error
    except ValueError as error:
        raise InputRefused(
            f"{kind}:// addresses cannot be read: the credentials are missing or not well-formed", CREDENTIALS[kind]
        ) from error
    name = whole if kind == "http" else (lambda path: str(raw._strip_protocol(whole(path))))
    fs = pafs.PyFileSystem(pafs.FSSpecHandler(raw))
    return Client(fs, name, raw, lists=kind != "http", writes=kind not in ("http", "hf"))


def _raw(kind: str, origin: str) -> Any:
    import fsspec

    if kind == "http":
        import aiohttp

        # trust_env: proxies from the environment and passwords from ~/.netrc.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=REQUEST_SECONDS)
        client = {"timeout": timeout, "trust_env": True}
        return fsspec.filesystem(origin, client_kwargs=client, use_listings_cache=False)
    if kind == "hf":
        return fsspec.filesystem("hf", use_listings_cache=False)
    return _azure(origin)


def _azure(origin: str) -> Any:
    """adlfs with limits: by itself it tries for a minute and a half to reach a server that is not there."""
    import logging

    import fsspec

    class Azure(fsspec.get_filesystem_class("az")):  # type: ignore[misc]
        def do_connect(self) -> None:
            super().do_connect()
            unbounded: Any = self.service_client
            self.service_client: Any = type(unbounded)(
                unbounded.url,
                credential=unbounded.credential,
                retry_total=ATTEMPTS - 1,
                initial_backoff=1,
                increment_base=2,
                connection_timeout=CONNECT_SECONDS,
                read_timeout=REQUEST_SECONDS,
            )

    # It logs what it then raises, on stderr.
    logging.getLogger("azure.identity").setLevel(logging.CRITICAL)
    return Azure(**Azure._get_kwargs_from_urls(origin), anon=False, use_listings_cache=False)

"""The client for an address: pyarrow's own for s3:// and gs://, fsspec's for hf://, az:// and http(s)://."""

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
from embedcli.storage.errors import CREDENTIALS, ObjectStoreReadError, scheme_family, translate_store_errors
from embedcli.storage.url_redaction import mask_secrets, unmasked

if TYPE_CHECKING:
    import pyarrow.fs as pafs

SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "http", "https")
# A server that does not respond at all is given up after about a minute: ATTEMPTS x REQUEST_SECONDS.
CONNECT_SECONDS = 10
REQUEST_SECONDS = 20
ATTEMPTS = 3
# The gs:// client does not count attempts; it retries for this long.
RETRY_SECONDS = 10
# The package that fsspec needs, and the extra that installs it.
NEEDS = {"http": ("aiohttp", "http"), "az": ("adlfs", "azure")}


@dataclass(frozen=True)
class Client:
    """The client for the files of one server.

    Attributes:
        fs: The file system as pyarrow sees it.
        fs_path: Translates an address into the path that `fs` uses.
        fsspec_fs: The fsspec file system inside `fs`; None for pyarrow's own.
        can_list: Whether folders can be listed.
        can_write: Whether files can be written.
    """

    fs: pafs.FileSystem
    fs_path: Callable[[str], str]
    fsspec_fs: Any = None
    can_list: bool = True
    can_write: bool = True


def get_client(path: str) -> Client:
    """Return the client for an address. UsageError for an unknown scheme or a missing extra."""
    kind = scheme_family(path)
    if kind not in ("s3", "gs", "az", "hf", "http"):
        near = get_close_matches(kind, SCHEMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}:// ? " if near else ""
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        hint = "write the path without file://" if kind == "file" else f"{hint}embedcli supports {known}"
        raise UsageError(f"{mask_secrets(path)}: {kind}:// addresses are not supported", hint)
    if kind == "hf" and "/" not in path.partition("://")[2].rstrip("/").removeprefix("datasets/"):
        raise UsageError(
            f"{mask_secrets(path)}: the repository is missing", "write it as hf://datasets/OWNER/NAME/PATH"
        )
    if kind in ("s3", "gs"):
        return _arrow_client(kind, _parse_bucket(path))
    return _fsspec_client(kind, _client_key(kind, path))


def _parse_bucket(path: str) -> str:
    bucket = path.partition("://")[2].partition("/")[0]
    if "@" in bucket:
        raise UsageError(
            f"{mask_secrets(path)}: credentials in an address are not supported",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead",
        )
    if not bucket:
        raise UsageError(f"{mask_secrets(path)}: the bucket is missing", "write it as s3://BUCKET/PATH")
    return bucket


def _client_key(kind: str, path: str) -> str:
    """Return what addresses must have in common to share one client."""
    return "" if kind == "hf" else unmasked(path) if kind == "az" else urlsplit(unmasked(path)).scheme


def _strip_scheme(path: str) -> str:
    return path.partition("://")[2].rstrip("/")


@lru_cache(maxsize=64)
def _arrow_client(kind: str, bucket: str) -> Client:
    address = f"{kind}://{bucket}"
    with translate_store_errors(address):
        return Client(_create_s3(bucket) if kind == "s3" else _create_gcs(), _strip_scheme)


def _create_s3(bucket: str) -> pafs.FileSystem:
    """Create the client for S3. It finds credentials in the environment, the shared config or the machine's role."""
    import pyarrow.fs as pafs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    settings: dict[str, Any] = {}
    if endpoint:
        split = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        settings = {"scheme": split.scheme, "endpoint_override": split.netloc + split.path.rstrip("/")}
    elif not region:
        region = _find_region(bucket)
    return pafs.S3FileSystem(
        region=region or None,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        # The parts of an upload are sent one by one straight from the spooled file, without a copy in memory.
        background_writes=False,
        # A small object takes one PUT instead of a multipart upload of three requests.
        allow_delayed_open=True,
        **settings,
    )


def _find_region(bucket: str) -> str | None:
    """Find the region of an Amazon bucket; None if it is unknown, and then the AWS rules decide."""
    import pyarrow.fs as pafs

    try:
        return str(pafs.resolve_s3_region(bucket))
    except OSError:
        return None


def _create_gcs() -> pafs.FileSystem:
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
def _fsspec_client(kind: str, key: str) -> Client:
    import pyarrow.fs as pafs

    try:
        fsspec_fs = _create_fsspec(kind, key)
    except ImportError as error:
        package, extra = NEEDS.get(kind, ("huggingface_hub", ""))
        raise UsageError(
            f"{kind}:// addresses need {package}, which is not installed",
            f"pip install 'embedcli[{extra}]'" if extra else f"pip install --upgrade {package}",
        ) from error
    except ValueError as error:
        raise ObjectStoreReadError(
            f"{kind}:// addresses cannot be read: the credentials are missing or malformed", CREDENTIALS[kind]
        ) from error
    fs_path = unmasked if kind == "http" else (lambda path: str(fsspec_fs._strip_protocol(unmasked(path))))
    fs = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec_fs))
    return Client(fs, fs_path, fsspec_fs, can_list=kind != "http", can_write=kind not in ("http", "hf"))


def _create_fsspec(kind: str, key: str) -> Any:
    import fsspec

    if kind == "http":
        import aiohttp

        # trust_env: proxies from the environment, passwords from ~/.netrc.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=REQUEST_SECONDS)
        client = {"timeout": timeout, "trust_env": True}
        return fsspec.filesystem(key, client_kwargs=client, use_listings_cache=False)
    if kind == "hf":
        return fsspec.filesystem("hf", use_listings_cache=False)
    return _create_azure(key)


def _create_azure(address: str) -> Any:
    """Create adlfs with limits: by default it tries for 90 seconds to reach a server that does not exist."""
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

    # It logs on stderr what it then raises.
    logging.getLogger("azure.identity").setLevel(logging.CRITICAL)
    return Azure(**Azure._get_kwargs_from_urls(address), anon=False, use_listings_cache=False)

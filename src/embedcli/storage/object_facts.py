"""What object stores and web servers say about an object: its version, its metadata, whether ranges can be read."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

# Facts that differ between two versions of a file, by the names that servers and libraries give them.
VERSION_KEYS = (
    "ETag",
    "etag",
    "generation",
    "blob_id",
    "Content-MD5",
    "content_md5",
    "Last-Modified",
    "last_modified",
    "mtime",
)


def find_version(facts: Mapping[str, Any]) -> str:
    """Return the first of VERSION_KEYS that a store reports; empty if it reports none."""
    return next((str(facts[key]) for key in VERSION_KEYS if facts.get(key)), "")


def md5_or_etag(facts: dict[str, str]) -> str:
    """Return the MD5 that a store reports, in hexadecimal; otherwise its ETag."""
    return base64.b64decode(facts["md5Hash"]).hex() if facts.get("md5Hash") else facts.get("ETag", "").strip('"')


def read_metadata(file: Any) -> dict[str, str]:
    """Read the metadata of an object."""
    return {to_text(key): to_text(value) for key, value in (file.metadata() or {}).items()}


def to_text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def answers_range_requests(raw: Any, name: str) -> bool:
    """Request one byte and check the status of the response only: 206 is partial content."""
    import asyncio

    async def status() -> int:
        session = await raw.set_session()
        async with session.get(name, headers={"Range": "bytes=0-0", "Accept-Encoding": "identity"}) as response:
            return int(response.status)

    return asyncio.run_coroutine_threadsafe(status(), raw.loop).result() == 206

"""What kind of failure an exception of a client library is, by its type, HTTP status or error code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from enum import Enum, auto


class FailureKind(Enum):
    """Why a request to an object store, a web server or the Hugging Face Hub failed."""

    MISSING = auto()  # the file
    NO_BUCKET = auto()  # the whole bucket or container
    NO_REPOSITORY = auto()
    GATED = auto()
    DENIED = auto()
    UNREACHABLE = auto()  # no connection, no response in time, or a server error that may pass
    OTHER = auto()


# The libraries whose exceptions are not all OSErrors. Any other exception is a defect of embedcli, and stays as it is.
LIBRARIES = frozenset({"aiohttp", "azure", "fsspec", "httpcore2", "httpx", "httpx2", "huggingface_hub", "pyarrow"})
# pyarrow's clients of s3:// and gs:// raise exceptions that have a text and nothing else. The text has a fixed form
# with the SDK's code in it (ErrorToStatus in Arrow's s3_internal.h, ToArrowStatus in gcsfs_internal.cc). This is the
# only place that reads a code out of a text.
ARROW_CODE = re.compile(
    r"AWS Error (?P<aws>[A-Z_]+)(?: \(HTTP status (?P<status>[0-9]+)\))? during"
    r"|google::cloud::Status\((?P<google>[A-Z_]+): (?P<message>.*)",
    re.DOTALL,
)
AWS_KINDS = {
    "NO_SUCH_BUCKET": FailureKind.NO_BUCKET,
    "NO_SUCH_KEY": FailureKind.MISSING,
    **dict.fromkeys(
        (
            "ACCESS_DENIED",
            "INVALID_ACCESS_KEY_ID",
            "INVALID_CLIENT_TOKEN_ID",
            "INVALID_SIGNATURE",
            "MISSING_AUTHENTICATION_TOKEN",
            "REQUEST_EXPIRED",
            "REQUEST_TIME_TOO_SKEWED",
            "SIGNATURE_DOES_NOT_MATCH",
            "UNRECOGNIZED_CLIENT",
        ),
        FailureKind.DENIED,
    ),
    **dict.fromkeys(
        (
            "INTERNAL_FAILURE",
            "NETWORK_CONNECTION",
            "REQUEST_TIMEOUT",
            "SERVICE_UNAVAILABLE",
            "SLOW_DOWN",
            "THROTTLING",
        ),
        FailureKind.UNREACHABLE,
    ),
}
# https://cloud.google.com/apis/design/errors. Denied requests have an errno, see `_kind_of_builtin`.
GOOGLE_KINDS = dict.fromkeys(
    ("DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE"), FailureKind.UNREACHABLE
)
# Unusable credentials come as INVALID_ARGUMENT or UNKNOWN, before any request: only the text tells them from others.
GOOGLE_NO_TOKEN = "Could not create a OAuth2 access token"
AZURE_NO_CONTAINER = ("ContainerNotFound", "ContainerBeingDeleted")


def find_cause(error: Exception) -> tuple[FailureKind, BaseException]:
    """Find the exception that says why a request failed; libraries wrap it in others.

    Returns:
        The kind of failure and the exception that told it.
    """
    for one in _causes(error):
        kind = _kind_of(one)
        if kind is not None:
            return kind, one
    if isinstance(error, FileNotFoundError):
        return FailureKind.MISSING, error
    return FailureKind.OTHER, next((one for one in _causes(error) if is_from_library(one)), error)


def is_from_library(error: BaseException) -> bool:
    """Whether an exception comes from the operating system or a client library, and is not a defect of embedcli."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in LIBRARIES


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from. fsspec calls any trouble a missing file, at times without `from`."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or (one.__context__ if isinstance(one, FileNotFoundError) else None)


def _kind_of(error: BaseException) -> FailureKind | None:
    """The kind that one exception tells; None if it tells none."""
    for look in (_kind_of_hub, _kind_of_azure, _kind_of_http, _kind_of_arrow, _kind_of_builtin):
        kind = look(error)
        if kind is not None:
            return kind
    return None


def _kind_of_hub(error: BaseException) -> FailureKind | None:
    if _is_a(error, "huggingface_hub.errors", "GatedRepoError"):
        return FailureKind.GATED
    if _is_a(error, "huggingface_hub.errors", "RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError"):
        return FailureKind.NO_REPOSITORY
    if _is_a(error, "huggingface_hub.errors", "LocalTokenNotFoundError"):
        return FailureKind.DENIED
    if _is_a(error, "huggingface_hub.errors", "HfHubHTTPError"):
        return _kind_of_status(error.response.status_code)  # type: ignore[attr-defined]
    return None


def _kind_of_azure(error: BaseException) -> FailureKind | None:
    if _is_a(error, "azure.core.exceptions", "ClientAuthenticationError"):
        return FailureKind.DENIED
    if _is_a(error, "azure.core.exceptions", "ServiceRequestError", "ServiceResponseError"):
        return FailureKind.UNREACHABLE
    if _is_a(error, "azure.core.exceptions", "HttpResponseError"):
        if getattr(error, "error_code", None) in AZURE_NO_CONTAINER:
            return FailureKind.NO_BUCKET
        return _kind_of_status(error.status_code)  # type: ignore[attr-defined]
    return None


def _kind_of_http(error: BaseException) -> FailureKind | None:
    if _is_a(error, "aiohttp", "ClientResponseError"):
        return _kind_of_status(error.status)  # type: ignore[attr-defined]
    if _is_a(error, "aiohttp", "ClientConnectionError", "ClientPayloadError"):
        return FailureKind.UNREACHABLE
    if _is_a(error, "httpx2", "HTTPStatusError"):
        return _kind_of_status(error.response.status_code)  # type: ignore[attr-defined]
    return FailureKind.UNREACHABLE if _is_a(error, "httpx2", "TransportError") else None


def _kind_of_arrow(error: BaseException) -> FailureKind | None:
    found = ARROW_CODE.search(str(error)) if is_from_library(error) else None
    if found is None:
        return None
    if found["aws"]:
        return _kind_of_status(int(found["status"])) if found["status"] else AWS_KINDS.get(found["aws"])
    if GOOGLE_NO_TOKEN in found["message"]:
        return FailureKind.DENIED
    return GOOGLE_KINDS.get(found["google"])


def _kind_of_builtin(error: BaseException) -> FailureKind | None:
    if isinstance(error, PermissionError):
        return FailureKind.DENIED
    return FailureKind.UNREACHABLE if isinstance(error, TimeoutError | ConnectionError) else None


def _kind_of_status(status: int | None) -> FailureKind | None:
    if status in (401, 403):
        return FailureKind.DENIED
    if status in (404, 410):
        return FailureKind.MISSING
    if status is not None and (status in (408, 429) or status >= 500):
        return FailureKind.UNREACHABLE
    return None


def _is_a(error: BaseException, module: str, *names: str) -> bool:
    """Whether an exception is of a library's type, without importing the library: if it is not loaded, it is not."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(error, tuple(getattr(loaded, name) for name in names))

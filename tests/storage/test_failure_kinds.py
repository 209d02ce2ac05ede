"""What kind of failure an exception of a client library is: by type, status and code, never by its wording."""

from __future__ import annotations

import pickle
from typing import Any

import aiohttp
import httpx2
import pyarrow as pa
import pytest
from huggingface_hub import errors as hub
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from embedcli.core.errors import InputError, OutputError
from embedcli.storage.errors import ObjectStoreError, translate_store_errors
from embedcli.storage.failure_kinds import FailureKind, find_cause

HEADERS: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())
REQUEST = aiohttp.RequestInfo(URL("http://h/a"), "GET", HEADERS)


def web(status: int) -> Exception:
    return aiohttp.ClientResponseError(REQUEST, (), status=status)


def hub_status(status: int) -> Exception:
    return hub.HfHubHTTPError("no", response=httpx2.Response(status, request=httpx2.Request("GET", "http://h/a")))


def repository(kind: type[hub.HfHubHTTPError]) -> Exception:
    return kind("no", response=httpx2.Response(401, request=httpx2.Request("GET", "http://h/a")))


def aws(code: str) -> Exception:
    return OSError(
        f"When reading information for key 'x' in bucket 'b': AWS Error {code} during HeadObject operation: "
    )


def google(code: str, message: str = "Retry policy exhausted") -> Any:
    return pa.ArrowInvalid(f"google::cloud::Status({code}: {message})")


def missing_from(cause: Exception) -> Exception:
    """What fsspec calls a missing file."""
    try:
        raise FileNotFoundError("http://h/a") from cause
    except FileNotFoundError as error:
        return error


def runtime_from(cause: Exception) -> Exception:
    """What adlfs raises."""
    try:
        raise RuntimeError("Failed to upload block") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (aws("ACCESS_DENIED"), FailureKind.DENIED),
        (aws("SIGNATURE_DOES_NOT_MATCH"), FailureKind.DENIED),
        (aws("NETWORK_CONNECTION"), FailureKind.UNREACHABLE),
        (aws("SLOW_DOWN"), FailureKind.UNREACHABLE),
        (aws("NO_SUCH_BUCKET"), FailureKind.NO_BUCKET),
        (aws("UNKNOWN (HTTP status 503)"), FailureKind.UNREACHABLE),
        (aws("UNKNOWN (HTTP status 301)"), FailureKind.OTHER),
        (google("UNAVAILABLE"), FailureKind.UNREACHABLE),
        (google("INVALID_ARGUMENT", "Could not create a OAuth2 access token to authenticate"), FailureKind.DENIED),
        (google("INVALID_ARGUMENT", "no such thing"), FailureKind.OTHER),
        (PermissionError(13, "google::cloud::Status(UNAUTHENTICATED: no)"), FailureKind.DENIED),
        (web(403), FailureKind.DENIED),
        (web(429), FailureKind.UNREACHABLE),
        (web(500), FailureKind.UNREACHABLE),
        (web(404), FailureKind.MISSING),
        (web(418), FailureKind.OTHER),
        (missing_from(web(401)), FailureKind.DENIED),
        (missing_from(web(404)), FailureKind.MISSING),
        (missing_from(aiohttp.ServerDisconnectedError()), FailureKind.UNREACHABLE),
        (aiohttp.ClientPayloadError("cut off"), FailureKind.UNREACHABLE),
        (httpx2.ConnectError("no route"), FailureKind.UNREACHABLE),
        (httpx2.ReadTimeout("slow"), FailureKind.UNREACHABLE),
        (hub_status(403), FailureKind.DENIED),
        (hub_status(502), FailureKind.UNREACHABLE),
        (repository(hub.GatedRepoError), FailureKind.GATED),
        (repository(hub.RepositoryNotFoundError), FailureKind.NO_REPOSITORY),
        (missing_from(repository(hub.RevisionNotFoundError)), FailureKind.NO_REPOSITORY),
        (missing_from(hub.HFValidationError("bad name")), FailureKind.NO_REPOSITORY),
        (FileNotFoundError(2, "no such file"), FailureKind.MISSING),
        (ConnectionResetError(104, "reset"), FailureKind.UNREACHABLE),
        (runtime_from(TimeoutError()), FailureKind.UNREACHABLE),
        # Words alone decide nothing.
        (OSError("403 Forbidden: access denied, timed out, NoSuchBucket, gated repo"), FailureKind.OTHER),
        (FileNotFoundError(2, "bucket not found: 503 timeout"), FailureKind.MISSING),
    ],
)
def test_the_kind_is_decided_by_type_status_and_code(error: Exception, kind: FailureKind) -> None:
    assert find_cause(error)[0] is kind


@pytest.mark.parametrize(
    ("error", "is_transient", "told"),
    [
        (web(503), True, "cannot be reached"),
        (web(403), False, "access is denied"),
        (aws("NO_SUCH_BUCKET"), False, "there is no such bucket"),
        (OSError("the server timed out"), False, "the server timed out"),
    ],
)
@pytest.mark.parametrize(("writing", "refused"), [(False, InputError), (True, OutputError)])
def test_only_what_may_pass_is_transient(
    error: Exception, is_transient: bool, told: str, writing: bool, refused: type[Exception]
) -> None:
    with pytest.raises(refused, match=told) as caught, translate_store_errors("s3://b/a", writing=writing):
        raise error
    assert isinstance(caught.value, ObjectStoreError)
    assert caught.value.is_transient is is_transient
    assert pickle.loads(pickle.dumps(caught.value)).is_transient is is_transient  # noqa: S301
    assert caught.value.hint


def test_defects_of_ours_and_missing_files_stay_what_they_are() -> None:
    errors: list[tuple[Any, type[Exception]]] = [
        (ZeroDivisionError(), ZeroDivisionError),
        (FileNotFoundError(2, "gone"), FileNotFoundError),
        (web(404), FileNotFoundError),
    ]
    for error, expected in errors:
        with pytest.raises(expected), translate_store_errors("http://h/a"):
            raise error

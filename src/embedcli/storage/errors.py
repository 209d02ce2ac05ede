"""What went wrong with an address: errors of four client libraries as one sentence and a remedy each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

from embedcli.core.errors import EmbedcliError, InputError, OutputError
from embedcli.storage.url_redaction import clean, mask_secrets, scheme_of, whole

# What holds a store's objects, in its own words.
BUCKETS = {"s3": "bucket", "gs": "bucket", "az": "container"}
NO_BUCKET = re.compile(
    r"NO_SUCH_BUCKET|NoSuchBucket|specified bucket does not exist|bucket.{0,80}not found"
    r"|ContainerNotFound|specified container does not exist",
    re.IGNORECASE,
)
GATED = re.compile(r"gated repo|GatedRepo", re.IGNORECASE)
NO_REPOSITORY = re.compile(r"(repository|revision) not found|invalid repository id", re.IGNORECASE)
DENIED = re.compile(
    r"ACCESS_DENIED|AccessDenied|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|EXPIRED_TOKEN"
    r"|\b40[13]\b|Forbidden|Unauthorized|Unauthenticated|PermissionDenied|Permission denied|MISSING_AUTHENTICATION"
    r"|AuthorizationFailure|AuthenticationFailed|failed to authenticate|AzureSigningError|access token is required"
    r"|no credentials|could not.{0,40}credential|ClientAuthenticationError|GatedRepo|RepositoryNotFound",
    re.IGNORECASE,
)
UNREACHABLE = re.compile(
    r"NETWORK_CONNECTION|curlCode|couldn.t connect|could not connect|cannot connect|ConnectError|could not resolve"
    r"|timed? ?out|REQUEST_TIMEOUT|timeout|name or service not known|name resolution|disconnected|UNAVAILABLE"
    r"|connection (refused|reset|aborted)|SLOW_DOWN|INTERNAL_FAILURE|\b50[0234]\b|payload is not completed",
    re.IGNORECASE,
)
# Their errors are not all OSErrors; any other error is a defect of ours, and stays one.
LIBRARIES = {"aiohttp", "azure", "fsspec", "httpcore2", "httpx", "httpx2", "huggingface_hub", "pyarrow"}
# Azure's libraries list every place where they looked for credentials.
LONGEST_TEXT = 400
SHORT = "one read fewer bytes than asked for"
CREDENTIALS = {
    "s3": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role, and what they allow; "
    "a store that is not Amazon's also needs AWS_ENDPOINT_URL",
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
    "az": "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
    "hf": "check the name, and log in with `hf auth login` or set HF_TOKEN",
    "http": "check the address: its token may have run out; a password can stand in ~/.netrc",
}
FAMILIES = {"gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}


class ObjectStoreError(EmbedcliError):
    """The server says no, or cannot be asked: never the same as a file that is not there."""


class InputRefused(ObjectStoreError, InputError):
    """What was asked for could not be read."""


class OutputRefused(ObjectStoreError, OutputError):
    """What was to be written could not be."""


def family(path: str) -> str:
    scheme = scheme_of(path) or ""
    return FAMILIES.get(scheme, scheme)


@contextmanager
def reaching(path: str, *, writing: bool = False) -> Iterator[None]:
    """Errors of the libraries become StoreRefused, with the address and a remedy; FileNotFoundError stays as it is."""
    try:
        yield
    except EmbedcliError:
        raise
    except Exception as error:
        cause = _cause(error)
        missing = isinstance(cause, FileNotFoundError) and not _whole_store_missing(cause)
        if missing or not (isinstance(cause, OSError) or type(cause).__module__.partition(".")[0] in LIBRARIES):
            raise
        made = told(path, cause, writing=writing)
        # The libraries' errors carry whole addresses: with a secret in one, no traceback may show them.
        raise made from (error if whole(mask_secrets(path)) == mask_secrets(path) else None)


@contextmanager
def creating(path: str) -> Iterator[None]:
    """`reaching` for a new object: nothing but its bucket or container can be missing."""
    try:
        with reaching(path, writing=True):
            yield
    except FileNotFoundError as error:
        raise no_bucket(path, OutputRefused, "written") from error


def no_bucket(path: str, kind: type[ObjectStoreError], verb: str) -> ObjectStoreError:
    return kind(
        f"{mask_secrets(path)}: cannot be {verb}: there is no such {BUCKETS.get(family(path), 'bucket')}",
        "check its name and its region or endpoint; embedcli makes none",
    )


def _whole_store_missing(error: FileNotFoundError) -> bool:
    """Whether it is not one file that is missing, but all of the bucket, container or repository."""
    return bool(NO_BUCKET.search(str(error)) or NO_REPOSITORY.search(str(error)))


def _cause(error: Exception) -> Exception:
    """What fsspec calls a missing file is any trouble of a web server: its cause tells which."""
    cause = error.__cause__
    if type(error) is RuntimeError and isinstance(cause, Exception):
        return cause  # adlfs
    known = (
        isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and "aiohttp" in type(cause).__module__
    )
    return cause if known and getattr(cause, "status", None) not in (404, 410) else error  # type: ignore[return-value]


def told(path: str, error: BaseException, *, writing: bool) -> EmbedcliError:
    """The error for the user."""
    kind = OutputRefused if writing else InputRefused
    verb = "written" if writing else "read"
    text = " ".join(clean(f"{type(error).__name__}: {error}" if not isinstance(error, OSError) else str(error)).split())
    text = shorten(text or type(error).__name__, LONGEST_TEXT, placeholder=" ...")
    what = f"{mask_secrets(path)}: cannot be {verb}"
    if NO_BUCKET.search(text):
        return no_bucket(path, kind, verb)
    if family(path) == "hf" and NO_REPOSITORY.search(text):
        return kind(f"{what}: there is no such repository or revision, or it is private", CREDENTIALS["hf"])
    if family(path) == "hf" and GATED.search(text):
        return kind(
            f"{what}: the repository is gated", "get access on its page, then use `hf auth login` or set HF_TOKEN"
        )
    if DENIED.search(text):
        return kind(f"{what}: access is denied ({text})", CREDENTIALS.get(family(path), "check the credentials"))
    if UNREACHABLE.search(text) or isinstance(error, TimeoutError | ConnectionError):
        return kind(
            f"{what}: the server cannot be reached or does not answer ({text})",
            "check the network" + (" and AWS_ENDPOINT_URL" if family(path) == "s3" else "") + ", "
            "then run the same command again: it goes on where it stopped",
        )
    return kind(f"{what}: {text}", "run the same command again: it goes on where it stopped")


def passing(error: EmbedcliError) -> bool:
    """Whether trying again soon may help."""
    return "cannot be reached" in error.message or SHORT in error.message

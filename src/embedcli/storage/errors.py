"""Errors of client libraries as one sentence and a hint each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

from embedcli.core.errors import EmbedcliError, InputError, OutputError
from embedcli.storage.failure_kinds import FailureKind, find_cause, is_from_library
from embedcli.storage.url_redaction import has_secrets, mask_secrets, mask_secrets_in_text, parse_scheme

# What each store calls the container of its objects.
BUCKET_WORDS = {"s3": "bucket", "gs": "bucket", "az": "container"}
# The Azure libraries list every place where they looked for credentials.
MAX_TEXT_CHARACTERS = 400
RUN_AGAIN = "run the same command again; it resumes where it stopped"
CREDENTIALS = {
    "s3": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the machine's role, and what they allow; "
    "a store that is not Amazon's also needs AWS_ENDPOINT_URL",
    "gs": "check GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
    "az": "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
    "hf": "check the name, and log in with `hf auth login` or set HF_TOKEN",
    "http": "check the address: its token may have expired; passwords can be stored in ~/.netrc",
}
FAMILIES = {"gcs": "gs", "abfs": "az", "abfss": "az", "https": "http"}


class ObjectStoreError(EmbedcliError):
    """The server refuses a request or cannot be reached. A file that does not exist is a FileNotFoundError instead.

    Attributes:
        is_transient: Whether trying again soon may help.
    """

    def __init__(self, message: str, hint: str = "", *, is_transient: bool = False) -> None:
        super().__init__(message, hint)
        self.is_transient = is_transient

    def __reduce__(self) -> tuple[Any, ...]:
        return *super().__reduce__(), {"is_transient": self.is_transient}


class ObjectStoreReadError(ObjectStoreError, InputError):
    """Reading failed."""


class ObjectStoreWriteError(ObjectStoreError, OutputError):
    """Writing failed."""


def scheme_family(path: str) -> str:
    """Return s3, gs, az, hf or http for an address; its scheme if it is another; empty for a local path."""
    scheme = parse_scheme(path) or ""
    return FAMILIES.get(scheme, scheme)


@contextmanager
def translate_store_errors(path: str, *, writing: bool = False) -> Iterator[None]:
    """Translate errors of the client libraries into ObjectStoreError, with the address and a hint.

    Raises:
        FileNotFoundError: The file does not exist, nor perhaps its bucket: see `describe_missing_bucket`.
        ObjectStoreReadError, ObjectStoreWriteError: Any other failure, depending on `writing`.
    """
    try:
        yield
    except EmbedcliError:
        raise
    except Exception as error:
        kind, cause = find_cause(error)
        if isinstance(error, FileNotFoundError) and kind in (FailureKind.MISSING, FailureKind.NO_BUCKET):
            raise
        if kind is FailureKind.MISSING:
            raise FileNotFoundError(mask_secrets(path)) from None
        if kind is FailureKind.OTHER and not is_from_library(cause):
            raise
        # The libraries' errors quote the requested address: a traceback must not show its secrets.
        raise _refusal(path, kind, cause, writing=writing) from (None if has_secrets(path) else error)


@contextmanager
def translate_create_errors(path: str) -> Iterator[None]:
    """Translate errors of creating an object: here only the bucket or container can be missing."""
    try:
        with translate_store_errors(path, writing=True):
            yield
    except FileNotFoundError as error:
        raise _no_bucket(path, ObjectStoreWriteError, "written") from error


def _no_bucket(path: str, kind: type[ObjectStoreError], verb: str) -> ObjectStoreError:
    return kind(
        f"{mask_secrets(path)}: cannot be {verb}: there is no such {BUCKET_WORDS.get(scheme_family(path), 'bucket')}",
        "check its name and its region or endpoint; embedcli does not create it",
    )


def _refusal(path: str, kind: FailureKind, cause: BaseException, *, writing: bool) -> ObjectStoreError:
    """Return the error for the user."""
    refused: type[ObjectStoreError] = ObjectStoreWriteError if writing else ObjectStoreReadError
    verb = "written" if writing else "read"
    text = _text_of(cause)
    what = f"{mask_secrets(path)}: cannot be {verb}"
    match kind:
        case FailureKind.NO_BUCKET:
            return _no_bucket(path, refused, verb)
        case FailureKind.NO_REPOSITORY:
            return refused(f"{what}: there is no such repository or revision, or it is private", CREDENTIALS["hf"])
        case FailureKind.GATED:
            return refused(
                f"{what}: the repository is gated",
                "request access on its page, then run `hf auth login` or set HF_TOKEN",
            )
        case FailureKind.DENIED:
            return refused(
                f"{what}: access is denied ({text})", CREDENTIALS.get(scheme_family(path), "check the credentials")
            )
        case FailureKind.UNREACHABLE:
            endpoint = " and AWS_ENDPOINT_URL" if scheme_family(path) == "s3" else ""
            return refused(
                f"{what}: the server cannot be reached or does not respond ({text})",
                f"check the network{endpoint}, then {RUN_AGAIN}",
                is_transient=True,
            )
        case _:
            return refused(f"{what}: {text}", RUN_AGAIN)


def _text_of(error: BaseException) -> str:
    """Return what a library reports, on one line, without the secrets of addresses."""
    text = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    return shorten(
        " ".join(mask_secrets_in_text(text).split()) or type(error).__name__, MAX_TEXT_CHARACTERS, placeholder=" ..."
    )

"""Addresses without their secrets: these are shown and recorded everywhere, while requests carry the whole address."""

from __future__ import annotations

import re

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
MASK = "***"
# Names of query parameters that carry rights or change with every signing (S3 and GCS presigned addresses, Azure SAS).
SECRET_NAME = re.compile(
    r"token|sig|key|secret|pass|auth|cred|policy|expires|^(x-amz-.*|x-goog-.*|googleaccessid|code"
    r"|s[evprts]|spr|sip|srt|sdd|sk[a-z]{1,3})$",
    re.IGNORECASE,
)
# A value of any other parameter that is longer than a date or a name may be a secret too.
MAX_PUBLIC_CHARACTERS = 24


def parse_scheme(path: str) -> str | None:
    """The scheme of an address in lower case; None for a path of this machine."""
    found = ADDRESS.match(path)
    return found[1].lower() if found else None


class MaskedAddress(str):
    """An address as it may be shown and recorded: its text has *** for each secret.

    Requests use `address`, which has the secrets. Pickling keeps them, so that workers can read the same input.
    """

    __slots__ = ("address",)
    address: str

    def __new__(cls, shown: str, address: str) -> MaskedAddress:
        made = super().__new__(cls, shown)
        made.address = address
        return made

    def __reduce__(self) -> tuple[type[MaskedAddress], tuple[str, str]]:
        return MaskedAddress, (str(self), self.address)


def masked(path: str) -> str:
    """Mask the passwords and tokens of an address with ***; return any other path as it is.

    The result carries the secrets that it does not show: `unmasked` gives the address for requests.
    """
    if isinstance(path, MaskedAddress) or parse_scheme(path) is None:
        return path
    shown = _mask(path)
    return path if shown == path else MaskedAddress(shown, path)


def unmasked(path: str) -> str:
    """The address with its secrets; a path without secrets as it is."""
    return path.address if isinstance(path, MaskedAddress) else path


def has_secrets(path: str) -> bool:
    return isinstance(masked(path), MaskedAddress)


def without_query(path: str) -> str:
    """A web address as far as its file's name goes; anything else as it is."""
    return path.partition("?")[0] if (parse_scheme(path) or "").startswith("http") else path


def mask_secrets_in_text(text: str) -> str:
    """A message of a library without the secrets of the addresses in it."""
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)]+", lambda found: _mask(found[0]), text)


def _mask(path: str) -> str:
    scheme, _, rest = path.partition("://")
    place, slash, tail = rest.partition("/")
    # az://container@account/... names an account: only user:password is a secret there.
    user, at, host = place.rpartition("@")
    if at and (":" in user or scheme.lower().startswith("http")):
        place = f"{MASK}@{host}"
    if not scheme.lower().startswith("http"):
        return f"{scheme}://{place}{slash}{tail}"
    before, mark, query = f"{place}{slash}{tail}".partition("?")
    return f"{scheme}://{before}{mark}{'&'.join(map(_mask_parameter, query.split('&')))}"


def _mask_parameter(pair: str) -> str:
    name, equals, value = pair.partition("=")
    if not equals:
        return MASK if len(name) > MAX_PUBLIC_CHARACTERS else pair
    return f"{name}={MASK}" if SECRET_NAME.search(name) or len(value) > MAX_PUBLIC_CHARACTERS else pair

"""Mask the secrets of addresses in everything that is shown or recorded; only requests use them."""

from __future__ import annotations

import re

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
SECRET_MASK = "***"
# Query parameters that grant access or change with every signature (presigned S3 and GCS addresses, Azure SAS).
SECRET_NAME = re.compile(
    r"token|sig|key|secret|pass|auth|cred|policy|expires|^(x-amz-.*|x-goog-.*|googleaccessid|code"
    r"|s[evprts]|spr|sip|srt|sdd|sk[a-z]{1,3})$",
    re.IGNORECASE,
)
# A longer value of any other parameter may be a secret too; dates and names are shorter.
MAX_PUBLIC_CHARACTERS = 24


def parse_scheme(path: str) -> str | None:
    """Return the scheme of an address in lower case; None for a local path."""
    found = ADDRESS.match(path)
    return found[1].lower() if found else None


class MaskedAddress(str):
    """An address whose text has *** in place of each secret, so that it can be shown and recorded.

    `address` has the secrets, for requests. Pickling keeps them, so that worker processes can read the same input.
    """

    __slots__ = ("address",)
    address: str

    def __new__(cls, shown: str, address: str) -> MaskedAddress:
        masked_address = super().__new__(cls, shown)
        masked_address.address = address
        return masked_address

    def __reduce__(self) -> tuple[type[MaskedAddress], tuple[str, str]]:
        return MaskedAddress, (str(self), self.address)


def mask_secrets(path: str) -> str:
    """Replace the passwords and tokens of an address with ***.

    Args:
        path: An address, or any other path, which is returned as it is.

    Returns:
        The masked address. It carries the secrets that it does not show, and can still be opened.
    """
    if isinstance(path, MaskedAddress) or parse_scheme(path) is None:
        return path
    shown = _mask(path)
    return path if shown == path else MaskedAddress(shown, path)


def unmasked(path: str) -> str:
    """Return the address with its secrets; a path without secrets as it is."""
    return path.address if isinstance(path, MaskedAddress) else path


def has_secrets(path: str) -> bool:
    return isinstance(mask_secrets(path), MaskedAddress)


def strip_query(path: str) -> str:
    """Return a web address without its query; any other path as it is."""
    return path.partition("?")[0] if (parse_scheme(path) or "").startswith("http") else path


def mask_secrets_in_text(text: str) -> str:
    """Mask the secrets of all addresses in the text of a library."""
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)]+", lambda found: _mask(found[0]), text)


def _mask(path: str) -> str:
    scheme, _, rest = path.partition("://")
    place, slash, tail = rest.partition("/")
    # az://container@account/... names an account: only user:password is a secret there.
    user, at, host = place.rpartition("@")
    if at and (":" in user or scheme.lower().startswith("http")):
        place = f"{SECRET_MASK}@{host}"
    if not scheme.lower().startswith("http"):
        return f"{scheme}://{place}{slash}{tail}"
    before, mark, query = f"{place}{slash}{tail}".partition("?")
    return f"{scheme}://{before}{mark}{'&'.join(map(_mask_parameter, query.split('&')))}"


def _mask_parameter(pair: str) -> str:
    name, equals, value = pair.partition("=")
    if not equals:
        return SECRET_MASK if len(name) > MAX_PUBLIC_CHARACTERS else pair
    return f"{name}={SECRET_MASK}" if SECRET_NAME.search(name) or len(value) > MAX_PUBLIC_CHARACTERS else pair

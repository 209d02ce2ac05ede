"""Addresses without their secrets: these are shown and recorded everywhere, while requests carry the whole address."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
MASK = "***"
# Names of query parameters that carry rights or change with every signing (S3 and GCS presigned addresses, Azure SAS).
SECRET_NAME = re.compile(
    r"token|sig|key|secret|pass|auth|cred|policy|expires|^(x-amz-.*|x-goog-.*|googleaccessid|code"
    r"|s[evprts]|spr|sip|srt|sdd|sk[a-z]{1,3})$",
    re.IGNORECASE,
)
# A value of any other parameter that is longer than a date or a name may be a secret too.
LONG_VALUE = 24
_WHOLE: dict[str, str] = {}


def scheme_of(path: str) -> str | None:
    """The scheme of an address in lower case; None for a path of this machine."""
    found = ADDRESS.match(path)
    return found[1].lower() if found else None


def mask_secrets(path: str) -> str:
    """An address with *** for passwords and tokens; anything else as it is. `whole` finds the address again."""
    if scheme_of(path) is None:
        return path
    shown = _masked(path)
    if shown != path:
        other = _WHOLE.setdefault(shown, path)
        _WHOLE[shown] = path if _without_secret_names(other) == _without_secret_names(path) else other
    return shown


def whole(path: str) -> str:
    """The address with its secrets, if `masked` has seen it in this process."""
    return _WHOLE.get(path, path)


def strip_query(path: str) -> str:
    """A web address as far as its file's name goes; anything else as it is."""
    return path.partition("?")[0] if (scheme_of(path) or "").startswith("http") else path


def clean(text: str) -> str:
    """A message of a library without the secrets of the addresses in it."""
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)]+", lambda found: _masked(found[0]), text)


def _masked(path: str) -> str:
    scheme, _, rest = path.partition("://")
    place, slash, tail = rest.partition("/")
    # az://container@account/... names an account: only user:password is a secret there.
    user, at, host = place.rpartition("@")
    if at and (":" in user or scheme.lower().startswith("http")):
        place = f"{MASK}@{host}"
    if not scheme.lower().startswith("http"):
        return f"{scheme}://{place}{slash}{tail}"
    before, mark, query = f"{place}{slash}{tail}".partition("?")
    return f"{scheme}://{before}{mark}{'&'.join(map(_masked_pair, query.split('&')))}"


def _masked_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    if not equals:
        return MASK if len(name) > LONG_VALUE else pair
    return f"{name}={MASK}" if SECRET_NAME.search(name) or len(value) > LONG_VALUE else pair


def _without_secret_names(path: str) -> str:
    split = urlsplit(path)
    kept = [pair for pair in split.query.split("&") if not SECRET_NAME.search(pair.partition("=")[0])]
    return f"{split.hostname}{split.path}?{'&'.join(kept)}"

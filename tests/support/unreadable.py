"""Check that an input is refused while it is planned, and what the error says."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedcli import readers
from embedcli.core.errors import InputError
from embedcli.core.job import Job


def check_refused(path: Path, content: bytes, message: str, hint: str) -> str:
    """Write `content` to `path` and expect an InputError that names the file; return its message."""
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        readers.plan_inputs(Job(inputs=(str(path),), output="-"))
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    return caught.value.message

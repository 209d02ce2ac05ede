"""The sentences about a table that holds something else than the output."""

from __future__ import annotations

import pytest

from embedcli.core.errors import UsageError
from embedcli.databases.record import MAX_VALUE_CHARACTERS, check_same_space

PROMPT = "Represent this sentence for searching relevant passages, please, as it was given: "


@pytest.mark.parametrize(
    ("there", "here", "expected"),
    [
        ("", PROMPT, f"prompt is '' there, '{PROMPT[:MAX_VALUE_CHARACTERS]}...' in the output"),
        (
            PROMPT,
            PROMPT + "now",
            "prompt is '...e, as it was given: ' there, '...e, as it was given: now' in the output",
        ),
        ("short", "shorter", "prompt is 'short' there, 'shorter' in the output"),
        (None, "x", "prompt is None there, 'x' in the output"),
        ([0.25] * 40, 3, f"prompt is {'[' + '0.25, ' * 9 + '0.25,'}... there, 3 in the output"),
    ],
)
def test_long_values_are_shortened_within_their_quotes(there: object, here: object, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        check_same_space({"prompt": there}, {"prompt": here}, "table docs", "use --swap")
    assert error.value.message == f"table docs: holds vectors of another vector space: {expected}"

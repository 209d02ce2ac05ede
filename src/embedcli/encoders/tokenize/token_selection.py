"""Which tokens of a multi-vector model (ColBERT) get a vector, and how short queries are filled up with mask tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import BoolArray


@dataclass(frozen=True)
class QueryExpansion:
    """How short queries are filled up with mask tokens.

    Attributes:
        width: Queries have at least this many tokens.
        token_id: The token that fills them up.
        is_attended: Whether the other tokens attend to it.
    """

    width: int
    token_id: int
    is_attended: bool

    def fill_up(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], BoolArray]:
        """Fill the rows of a padded batch up to `width`, whatever the width of the batch.

        Args:
            ids: int64 [batch, width]; the padded token ids.
            mask: int64 [batch, width]; 1 for a token, 0 for padding.

        Returns:
            The ids and the attention mask of the filled rows, and bool [batch, width], which tokens were filled in.
        """
        is_filled = (mask == 0) & (np.arange(mask.shape[1]) < self.width)
        ids = np.where(is_filled, self.token_id, ids)
        return ids, np.where(is_filled, 1, mask) if self.is_attended else mask, is_filled


@dataclass(frozen=True)
class TokenSelection:
    """The tokens whose vectors are kept.

    Attributes:
        expansion: How queries are filled up; None if they are not.
        keeps_expansion: Whether tokens that were filled in are kept even if no other token attends to them.
        skipped_ids: Tokens that are left out: the punctuation of documents in most models.
    """

    expansion: QueryExpansion | None = None
    keeps_expansion: bool = False
    skipped_ids: tuple[int, ...] = ()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TokenSelection:
        """Restore what `dataclasses.asdict` and JSON made of a selection."""
        expansion = values["expansion"]
        return cls(
            expansion=None if expansion is None else QueryExpansion(**expansion),
            keeps_expansion=bool(values["keeps_expansion"]),
            skipped_ids=tuple(values["skipped_ids"]),
        )

    def prepare(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], BoolArray]:
        """Fill queries up and select tokens.

        Args:
            ids: int64 [batch, width]; the padded token ids.
            mask: int64 [batch, width]; 1 for a token, 0 for padding.

        Returns:
            The ids and the attention mask for the network, and bool [batch, width], whose vectors are kept.
        """
        is_kept = mask > 0
        if self.expansion is not None:
            ids, mask, is_filled = self.expansion.fill_up(ids, mask)
            is_kept = (mask > 0) | is_filled if self.keeps_expansion else mask > 0
        if self.skipped_ids:
            is_kept &= ~np.isin(ids, self.skipped_ids)
        return ids, mask, is_kept

"""Multi-vector models (ColBERT) on OpenVINO: a vector for every token is computed, and those that count are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedcli.core.encoder import Tokens
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.row_vectors import MultiVectorBuffer
from embedcli.encoders.errors import translate_memory_errors
from embedcli.encoders.openvino.encoder import ConvertedNetwork, LoadRequest, OpenVinoEncoder
from embedcli.encoders.openvino.infer_requests import InferRequestPool
from embedcli.encoders.tokenize.token_selection import TokenSelection

if TYPE_CHECKING:
    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import Int64Array


class MultiVectorOpenVinoEncoder(OpenVinoEncoder):
    """A compiled MultiVectorEncoder pipeline on the CPU; `collect` returns `MultiVectors`."""

    def __init__(
        self,
        request: LoadRequest,
        network: ConvertedNetwork,
        compile_network: Callable[[ConvertedNetwork, str], Any],
    ) -> None:
        """Compile the network; see `OpenVinoEncoder`."""
        super().__init__(request, network, compile_network)
        self._selection = TokenSelection.from_json(network.metadata["token_selection"])
        if self._selection.expansion is not None and not self.equal_lengths:
            # Widths that occur, so that the token budget counts the mask tokens too.
            self.pad_to_multiple_of = self._selection.expansion.width

    def _make_buffer(self, count: int) -> MultiVectorBuffer:
        return MultiVectorBuffer(count, self.dim)

    def _start(self, requests: InferRequestPool, tokens: Tokens, rows: Int64Array) -> Any:
        expansion = self._selection.expansion
        ids, mask = self._pad(tokens, rows, 0 if expansion is None else expansion.width)
        ids, mask, is_kept = self._selection.prepare(ids, mask)
        with translate_memory_errors():
            return requests.start(ids, mask), is_kept

    def _finish(self, requests: InferRequestPool, output: Any) -> MultiVectors:
        running, is_kept = output
        return MultiVectors(offsets_of(is_kept.sum(axis=1)), requests.finish(running, is_kept))

    def _adjust(self, vectors: EncodedVectors) -> EncodedVectors:
        """Merge similar vectors for --pool-factor. The network has scaled them already, also in half precision."""
        pool, factor = self._request.pool_tokens, self._request.job.pool_factor
        if pool is None or factor is None or not isinstance(vectors, MultiVectors):
            return vectors
        return pool(vectors, factor)

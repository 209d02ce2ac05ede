"""The engine keeps the vectors of every row together, encodes bad rows again, and rejects what stays bad."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedcli.core.encoder import NO_TOKEN_VECTORS_REASON, NOT_FINITE_REASON, Tokens
from embedcli.core.errors import ModelError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.types import VectorKind
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.engine import encode_chunks
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings
from fakes import FakeEncoder, chunk


class FakeMultiVectorEncoder(FakeEncoder):
    """A vector for each word, by the word alone. `nan` is not finite in a batch, `always` never; `gone` has none."""

    kind: VectorKind = "multi_vector"

    def collect(self, output: Any) -> Any:
        self.in_flight -= 1
        tokens, rows = output
        return self._vectors(tokens, rows, bad=("nan", "always"))

    def encode_float32(self, tokens: Tokens, rows: Any) -> Any:
        return self._vectors(tokens, rows, bad=("always",))

    def _vectors(self, tokens: Tokens, rows: Any, bad: tuple[str, ...]) -> MultiVectors:
        found = []
        numbers = {word: int(self.tokenize([word]).ids[0]) for word in ("nan", "always", "gone")}
        for row in rows:
            ids = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
            vectors = [self._word_vector(token, {numbers[word] for word in bad}) for token in ids]
            found.append(np.array([] if numbers["gone"] in ids else vectors, np.float32).reshape(-1, self.dim))
        return MultiVectors(offsets_of([len(row) for row in found]), np.concatenate(found))

    def _word_vector(self, token: int, bad: set[int]) -> Any:
        vector = np.random.default_rng(int(token)).standard_normal(self.dim)
        return vector * np.nan if int(token) in bad else vector


def run(texts: list[str], **values: Any) -> Any:
    encoder = FakeMultiVectorEncoder(**values)
    settings, control = EncodingSettings(), RunControl()
    (encoded,) = encode_chunks([chunk(texts)], encoder, settings, MetricsCollector(), control)
    return encoded


def word_vectors(text: str) -> Any:
    encoder = FakeMultiVectorEncoder()
    return encoder.encode_float32(encoder.tokenize([text]), np.arange(1)).values


@pytest.mark.parametrize("budget", [1, 7, 1000])
def test_each_row_gets_the_vectors_of_its_words(budget: int) -> None:
    texts = [" ".join(f"w{i + j}" for j in range(1 + i % 5)) for i in range(20)] + ["w1 w2", "w1 w2"]
    encoded = run(texts, batch_tokens=budget)
    assert encoded.rows.tolist() == list(range(22))
    assert encoded.n_tokens.tolist() == [len(text.split()) for text in texts]
    for i, text in enumerate(texts):
        vectors = encoded.vectors
        own = vectors.values[vectors.offsets[i] : vectors.offsets[i + 1]]
        np.testing.assert_array_equal(own, word_vectors(text))


def test_rows_that_are_not_finite_are_encoded_again_and_then_rejected() -> None:
    encoded = run(["a b", "nan c d", "always e", "gone f", "", "g"])
    assert encoded.rows.tolist() == [0, 1, 5]
    assert encoded.vectors.lengths.tolist() == [2, 3, 1]
    np.testing.assert_array_equal(encoded.vectors.values[2:5], word_vectors("nan c d"))
    reasons = [(reject.line, reject.reason) for reject in encoded.rejects]
    assert reasons == [(3, NOT_FINITE_REASON), (4, NO_TOKEN_VECTORS_REASON), (5, "no known word")]


def test_an_encoder_that_loses_rows_is_an_error() -> None:
    class Losing(FakeMultiVectorEncoder):
        def collect(self, output: Any) -> Any:
            return super().collect(output)[:-1]

    with pytest.raises(ModelError, match="returned an array of shape"):
        list(encode_chunks([chunk(["a", "b"])], Losing(), EncodingSettings(), MetricsCollector(), RunControl()))

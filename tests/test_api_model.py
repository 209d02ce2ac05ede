"""`embedcli.Model` gives what sentence-transformers gives for the same calls."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcli
import routers
from embedcli.api.model import EncodeOptions
from embedcli.api.prompts import SavedPrompts, plan_prompt
from embedcli.core.constants import DEFAULT_MODEL
from embedcli.core.job import Job
from embedcli.models.resolve import resolve_model
from searchable import PROMPTS, TEXTS, model_folder

SENTENCES = ["A cat sleeps on the sofa.", "Rain falls.", "", "What is the capital of France?", "x " * 400]


def load_reference(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with prompts, of which `query` is not the default."""
    folder = tmp_path_factory.mktemp("bundled") / "model"
    source = resolve_model(Job((), "-", model=DEFAULT_MODEL, offline=True)).path
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "config_sentence_transformers.json":
            (folder / path.name).symlink_to(path)
    settings = {
        "prompts": {"query": "search for: ", "document": "page: ", "other": "say: "},
        "default_prompt_name": "other",
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings), "utf-8")
    return folder


@pytest.fixture(scope="module")
def ours(bundled: Path) -> Iterator[embedcli.Model]:
    with embedcli.load(bundled, device="cpu") as model:
        yield model


@pytest.fixture(scope="module")
def theirs(bundled: Path) -> Any:
    return load_reference(bundled)


CALLS: list[dict[str, Any]] = [
    {},
    {"prompt": "so: "},
    {"prompt": ""},
    {"prompt_name": "query"},
    {"prompt_name": "query", "prompt": "so: "},
    {"normalize_embeddings": True, "batch_size": 2},
    {"truncate_dim": 40, "normalize_embeddings": True},
    {"truncate_dim": 40, "normalize_embeddings": False},
    {"convert_to_tensor": True},
    {"convert_to_numpy": False},
]


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_calls_give_the_vectors_of_sentence_transformers(
    ours: embedcli.Model, theirs: Any, method: str, call: dict[str, Any]
) -> None:
    made = getattr(ours, method)(SENTENCES, **call)
    wanted = getattr(theirs, method)(SENTENCES, show_progress_bar=False, **call)
    assert type(made) is type(wanted)
    assert type(made[0]) is type(wanted[0])
    made, wanted = (np.stack([np.asarray(row) for row in rows]) for rows in (made, wanted))
    assert made.dtype == wanted.dtype
    assert np.allclose(made, wanted, atol=2e-6)


def test_prompts_that_pooling_leaves_out_are_those_of_sentence_transformers(bundled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled, folder, symlinks=True)
    (folder / "1_Pooling").unlink()
    shutil.copytree((bundled / "1_Pooling").resolve(), folder / "1_Pooling")
    config = folder / "1_Pooling" / "config.json"
    settings = json.loads(config.read_text("utf-8")) | {"include_prompt": False}
    config.unlink()
    config.write_text(json.dumps(settings), "utf-8")
    reference = load_reference(folder)
    with embedcli.load(folder, device="cpu", engine="torch") as model:
        for call in ({}, {"prompt": "so: "}, {"prompt_name": "query"}):
            for name in ("encode", "encode_query"):
                made, wanted = (getattr(each, name)(SENTENCES[:2], **call) for each in (model, reference))
                assert np.allclose(made, wanted, atol=2e-6), (name, call)


def test_routes_of_queries_and_documents_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    routers.build_nested_router(tmp_path / "model")
    reference = load_reference(tmp_path / "model")
    with embedcli.load(tmp_path / "model", device="cpu", engine="torch") as model:
        query, document = (getattr(model, name)(SENTENCES[:2]) for name in ("encode_query", "encode_document"))
        assert np.allclose(query, reference.encode_query(SENTENCES[:2]), atol=2e-6)
        assert np.allclose(document, reference.encode_document(SENTENCES[:2]), atol=2e-6)
        assert np.abs(query - document).max() > 0.1


def test_prompts_that_are_plain_text_share_encoders(ours: embedcli.Model) -> None:
    """With the default prompt, and with none."""
    for call in CALLS:
        ours.encode_query("a", **call)
        ours.encode_document("a", **call)
    assert len(ours._encoders) == 2


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precisions_are_those_of_sentence_transformers(ours: embedcli.Model, theirs: Any, precision: Any) -> None:
    texts = [f"{word} {number}" for word in ("cat", "rain", "bread") for number in range(40)]
    made = ours.encode(texts, precision=precision)
    wanted = theirs.encode(texts, precision=precision, show_progress_bar=False)
    assert (made.dtype, made.shape) == (wanted.dtype, wanted.shape)
    # A value at the border of a step or at zero may fall on either side.
    assert (made != wanted).mean() < 1e-3


def test_ranges_of_few_texts_are_refused_or_warned_about(
    ours: embedcli.Model, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(embedcli.UsageError, match="needs the value ranges of many texts"):
        ours.encode("a cat", precision="int8")
    ours.encode(["a cat", "a dog"], precision="int8")
    assert "int8 ranges are computed from these 2 texts alone" in caplog.text
    assert ours.encode([], precision="int8").shape == (0, 384)
    assert ours.encode("a cat", precision="float16").dtype == np.float16
    with pytest.raises(embedcli.UsageError, match="precision='int4' is not a valid choice"):
        ours.encode("a cat", precision="int4")  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan", None])
def test_similarities_are_those_of_sentence_transformers(tmp_path: Path, name: str | None) -> None:
    import torch

    folder = model_folder(tmp_path / "tiny", PROMPTS)
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"similarity_fn_name": name}), "utf-8")
    reference = load_reference(folder)
    with embedcli.load(folder) as model:
        assert model.similarity_fn_name == reference.similarity_fn_name == (name or "cosine")
        one, two = model.encode(TEXTS) * 3, model.encode(TEXTS[::-1])
        for left, right in ((one, two[:5]), (one[0], two), (list(one), one), (torch.tensor(one), two)):
            made, wanted = model.similarity(left, right), reference.similarity(left, right)
            assert isinstance(made, torch.Tensor if isinstance(left, torch.Tensor) else np.ndarray)
            assert np.allclose(np.asarray(made), wanted.numpy(), atol=1e-5)
        assert np.allclose(
            model.similarity_pairwise(one, two), reference.similarity_pairwise(one, two).numpy(), atol=1e-5
        )
        with pytest.raises(embedcli.UsageError, match="24 and 5 dimensions"):
            model.similarity(one, two[:, :5])
        with pytest.raises(embedcli.UsageError, match="cannot be paired"):
            model.similarity_pairwise(one, two[:2])
        with pytest.raises(embedcli.UsageError, match="takes vectors"):
            model.similarity(["cat"], one)


def test_truncated_vectors_are_scaled_as_on_the_command_line(ours: embedcli.Model, bundled: Path) -> None:
    with embedcli.load(bundled, device="cpu", truncate_dim=40) as cut:
        assert np.allclose(ours.encode(SENTENCES, truncate_dim=40), cut.encode(SENTENCES), atol=1e-6)
        with pytest.raises(embedcli.UsageError, match="not between 1 and the 40 dimensions"):
            cut.encode("a", truncate_dim=41)
    with embedcli.load(bundled, device="cpu", normalize=False) as raw:
        full = raw.encode("a cat")
        assert np.array_equal(raw.encode("a cat", truncate_dim=40), full[:40])
        assert np.linalg.norm(raw.encode("a cat", normalize_embeddings=True)) == pytest.approx(1)


def test_a_prompt_for_all_texts_is_not_taken_for_a_role(bundled: Path) -> None:
    with embedcli.load(bundled, device="cpu", prompt="say: ") as model:
        with pytest.raises(embedcli.UsageError, match="a prompt for all texts, and encode_query"):
            model.encode_query("a")
        assert np.allclose(model.encode_query("a", prompt="so: "), model.encode("a", prompt="so: "), atol=1e-6)
        with pytest.raises(embedcli.UsageError, match="no prompt named 'none'"):
            model.encode("a", prompt_name="none")


def test_options_of_a_call_are_checked(ours: embedcli.Model, bundled: Path) -> None:
    for wrong in (0, -1, 1.5, "8"):
        with pytest.raises(embedcli.UsageError, match="batch_size="):
            ours.encode("a", batch_size=wrong)  # type: ignore[arg-type]
    with pytest.raises(embedcli.UsageError, match="several vectors"):
        embedcli.load(bundled, overflow="split")
    with pytest.raises(embedcli.UsageError, match="'keep' is not an option of load: it is about files"):
        embedcli.load(bundled, keep=["title"])  # type: ignore[call-arg]


def test_parameters_are_those_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    for name in ("encode", "encode_query", "encode_document"):
        parameters = set(inspect.signature(getattr(embedcli.Model, name)).parameters) - {"self", "texts"}
        assert parameters == set(EncodeOptions.__annotations__)
        assert parameters <= set(inspect.signature(getattr(SentenceTransformer, name)).parameters)


def test_a_model_says_what_it_is(ours: embedcli.Model, bundled: Path) -> None:
    assert repr(ours) == f"<embedcli.Model {bundled}: 384 dimensions, cosine similarity>"
    assert ours.prompts["query"] == "search for: "


JOB = Job((), "-")


@pytest.mark.parametrize("saved", [SavedPrompts(is_plain_text=False, has_roles=False), SavedPrompts()])
def test_prompts_that_are_more_than_text_are_left_to_the_encoder(saved: SavedPrompts) -> None:
    plan = plan_prompt(JOB, saved, None, "so: ", None)
    assert (plan.job.prompt or "") + plan.prefix == "so: "
    assert (plan.prefix == "so: ") == saved.is_plain_text
    routed = plan_prompt(JOB, saved, "query", None, None)
    assert (routed.job.as_ == "query") == saved.has_roles


def test_a_closed_model_loads_no_other_encoder(tmp_path: Path) -> None:
    model = embedcli.load(model_folder(tmp_path / "tiny", PROMPTS), prompt="query: ")
    model.close()
    for prompt in (None, "passage: "):
        with pytest.raises(embedcli.UsageError, match="the model is closed"):
            model.encode("cat", prompt=prompt)

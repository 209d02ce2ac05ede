"""Word vectors: files as gensim reads them, damage told with its place, words found and averaged."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.encoders.static import encoder as static_encoder
from embedcli.encoders.static import word_splitter, word_vectors
from embedcli.encoders.static.word_splitter import WordSplitter
from embedcli.models import resolve
from static_models import encode, load, table

VOCABULARY = ["the", "fox", "don't", "naïve", "stone", "bridge", "co-op", "हिन्दी", "3", "</s>"]
CHINESE = ["我们", "喜欢", "北京", "天安门", "机器", "学习", "ok", "的"]


def keyed(words: list[str] | None = None, dim: int = 8) -> Any:
    """gensim's KeyedVectors of some words."""
    from gensim.models import KeyedVectors

    made = KeyedVectors(dim)
    words = VOCABULARY if words is None else words
    made.add_vectors(words, table(len(words), dim))
    return made


def write(vectors: Any, path: Path, kind: str) -> Path:
    if kind == "kv":
        vectors.save(str(path))
    elif kind == "kv-large":
        vectors.save(str(path), separately=["vectors"])
    elif kind == "kv-old":
        vectors.save(str(path), pickle_protocol=2)
    else:
        binary, header = kind.startswith("binary"), not kind.startswith("glove")
        vectors.save_word2vec_format(str(path), binary=binary, write_header=header)
    if kind == "vec":
        lines = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join([lines[0], *(line + b" " for line in lines[1:-1]), b""]))
    if kind.endswith("gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


KINDS = {
    "binary": "word2vec-binary",
    "binary-gz": "word2vec-binary",
    "text": "word2vec-text",
    "text-gz": "word2vec-text",
    "vec": "word2vec-text",
    "glove": "glove-text",
    "glove-gz": "glove-text",
    "kv": "keyed-vectors",
    "kv-large": "keyed-vectors",
    "kv-old": "keyed-vectors",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_is_recognised_and_read_whole(tmp_path: Path, kind: str) -> None:
    vectors = keyed()
    path = write(vectors, tmp_path / "vectors", kind)
    assert static_encoder.detect_static_format(path) == KINDS[kind]
    made = word_vectors.read_word_vectors(path)
    assert made.index == vectors.key_to_index
    np.testing.assert_array_equal(made.vectors, vectors.vectors)
    assert made.notes == ()


@pytest.mark.parametrize("kind", ["binary", "text", "glove", "vec"])
def test_blocks_end_anywhere(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = keyed([f"word{i}" * (i % 5 + 1) for i in range(50)])
    path = write(vectors, tmp_path / "vectors", kind)
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr(word_vectors, "READ_BLOCK_BYTES", size)
        made = word_vectors.read_word_vectors(path)
        assert made.index == vectors.key_to_index
        np.testing.assert_array_equal(made.vectors, vectors.vectors)


@pytest.mark.parametrize("kind", ["binary", "text", "glove", "kv"])
def test_rows_are_the_means_that_gensim_makes(tmp_path: Path, kind: str) -> None:
    vectors = keyed()
    encoder = load(write(vectors, tmp_path / "vectors.bin", kind))
    words = [["the", "fox", "the"], ["stone", "naïve"], ["3"]]
    made = encode(encoder, ["The fox, the!", "stone xyzzy NAÏVE", "3"])
    wanted = [vectors.get_mean_vector(some, pre_normalize=False) for some in words]
    np.testing.assert_allclose(made, np.array(wanted), atol=1e-6)
    assert encoder.tokenize(["xyzzy", "", "the"]).lengths.tolist() == [0, 0, 1]
    assert encoder.empty_reason == "no known word"


def test_a_folder_with_one_file_of_vectors_is_a_model(tmp_path: Path) -> None:
    write(keyed(), tmp_path / "light_Tencent_AILab_ChineseEmbedding.bin", "binary")
    (tmp_path / "README.md").write_text("vectors")
    assert load(tmp_path).vector_space()["format"] == "word2vec-binary"


def test_the_first_of_two_equal_words_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("3 2\na 1 2\nb 3 4\na 5 6\n")
    made = word_vectors.read_word_vectors(path)
    assert made.vectors[made.index["a"]].tolist() == [1, 2]
    assert "1 words come more than once" in made.notes[0]
    said: list[str] = []
    load(path, said)
    assert said == list(made.notes)


def test_words_may_hold_spaces_and_numbers_any_usual_form(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2 3\n. . . -1e-3 +2 0.5\r\n3 4 5 6\n\u00a0 7 8 9")
    made = word_vectors.read_word_vectors(path)
    assert list(made.index) == ["the", ". . .", "3", "\u00a0"]
    wanted = np.array([[1, 2, 3], [-1e-3, 2, 0.5], [4, 5, 6], [7, 8, 9]], np.float32)
    np.testing.assert_array_equal(made.vectors, wanted)


def test_words_that_are_not_utf8_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_bytes(b"2 2\ncaf\xe9 1 2\nthe 3 4\n")
    made = word_vectors.read_word_vectors(path)
    assert list(made.index) == ["the"]
    assert "1 words are not UTF-8" in made.notes[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2 3\na 1 2 3\n", r":3: the file ends after 1 of 2 vectors"),
        ("1 3\na 1 2 3\nb 4 5 6\n", r":3: more follows"),
        ("3 3\na 1 2 3\nb 4 5\nc 7 8 9\n", r":3: it holds 2 numbers, 3 were expected"),
        ("2 3\na 1 2 3\nb 4 5 6 7\n", r":3: it holds 4 numbers, 3 were expected"),
        ("2 3\na 1 2 3\nb 4 five 6\n", r":3: could not convert"),
        ("a 1 2 3\nb 4 5\n", r":2: it holds 2 numbers, 3 were expected"),
        ("999999999 300\na" + " 1" * 300 + "\n", r":1: the first line promises"),
        ("0 3\na 1 2 3\n", r":1: the first line promises"),
        ("hello world\n", "no static vectors|not a file of word vectors"),
        ("", "no static vectors|not a file of word vectors"),
    ],
)
def test_damaged_text_is_reported_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(text)
    for read in (word_vectors.read_word_vectors, load):
        with pytest.raises(ModelError, match=says):
            read(path)


def test_damaged_binary_files_are_reported_with_their_byte(tmp_path: Path) -> None:
    whole = write(keyed(), tmp_path / "vectors.bin", "binary").read_bytes()
    path = tmp_path / "damaged.bin"
    for stop in range(len(whole) // 2, len(whole)):
        path.write_bytes(whole[:stop])
        with pytest.raises(ModelError, match=r", byte \d+: vector \d+ of 10 is not whole|first line promises"):
            word_vectors.read_word_vectors(path)
    path.write_bytes(whole + b"the end")
    with pytest.raises(ModelError, match=rf", byte {len(whole)}: more follows"):
        word_vectors.read_word_vectors(path)
    path.write_bytes(whole + b"\n")
    assert len(word_vectors.read_word_vectors(path).index) == 10


def test_a_word_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_vectors, "MAX_WORD_BYTES", 100)
    monkeypatch.setattr(word_vectors, "READ_BLOCK_BYTES", 64)
    path = tmp_path / "vectors.bin"
    path.write_bytes(b"2 2\n" + b"x" * 100_000)
    with path.open("rb") as stream:
        monkeypatch.setattr(word_vectors, "detect_word_vector_format", lambda _: "word2vec-binary")
        monkeypatch.setattr(word_vectors, "open_word_vectors", lambda _: contextlib.nullcontext(stream))
        with pytest.raises(ModelError, match="vector 1 of 2 is not whole"):
            word_vectors.read_word_vectors(path)
        assert stream.tell() < 1000


@pytest.mark.parametrize("kind", ["binary", "text", "glove-gz", "kv"])
@given(data=st.data())
def test_any_damage_is_a_model_error_or_vectors(kind: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    whole = bytearray(write(keyed(VOCABULARY[:4], 3), folder / "vectors", kind).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        made = word_vectors.read_word_vectors(path)
    except ModelError:
        return
    assert made.vectors.dtype == np.float32
    assert all(0 <= i < len(made.vectors) for i in made.index.values())


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("place", ["whole", "inside", "getattr"])
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, place: str) -> None:
    mark, path = tmp_path / "executed", tmp_path / "vectors.kv"
    if place == "whole":
        path.write_bytes(pickle.dumps(Trap(mark)))
    elif place == "inside":
        vectors = keyed()
        vectors.extra = Trap(mark)
        vectors.save(str(path))
    else:
        path.write_bytes(b"\x80\x04c__builtin__\ngetattr\n(cos\nsystem\nX\x01\x00\x00\x00at\x85R.")
    with pytest.raises(ModelError, match="nothing of it was run"):
        load(path)
    assert not mark.exists()


def test_a_whole_gensim_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    from gensim.models import Word2Vec

    path = tmp_path / "model.kv"
    Word2Vec([["a", "b"]], vector_size=4, min_count=1).save(str(path))
    with pytest.raises(ModelError) as caught:
        load(path)
    assert "model.wv.save" in caught.value.hint or "nothing of it was run" in caught.value.message


def test_large_keyed_vectors_need_and_name_their_second_file(tmp_path: Path) -> None:
    path = write(keyed(), tmp_path / "vectors.kv", "kv-large")
    job = Job((), "", model=str(path))
    before = static_encoder.static_model_identity(resolve.resolve_model(job), job)["fingerprint"]
    beside = tmp_path / "vectors.kv.vectors.npy"
    np.save(beside, np.zeros((len(VOCABULARY), 8), np.float32))
    assert static_encoder.static_model_identity(resolve.resolve_model(job), job)["fingerprint"] != before
    np.save(beside, np.array([{}]), allow_pickle=True)
    with pytest.raises(ModelError, match=r"vectors\.kv\.vectors\.npy"):
        load(path)
    beside.unlink()
    with pytest.raises(ModelError, match=r"vectors\.kv\.vectors\.npy"):
        load(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the fox", ["the", "fox"]),
        ("THE Fox", ["the", "fox"]),
        ("don't, don\u2019t DON'T", ["don't"] * 3),
        ("the-fox's stone–bridge co-op", ["the", "fox", "stone", "bridge", "co-op"]),
        ("हिन्दी, हिन्दी।", ["हिन्दी"] * 2),
        ("nothing known", []),
        ("3.3", ["3", "3"]),
        ("中文 the 狐狸", ["the"]),
    ],
)
def test_words_are_found(text: str, words: list[str]) -> None:
    index = {word: i for i, word in enumerate(VOCABULARY)}
    assert WordSplitter(index).word_ids(text) == [index[word] for word in words]


def test_capitals_count_where_the_vocabulary_has_them() -> None:
    splitter = WordSplitter({"Apple": 0, "apple": 1, "fox": 2})
    assert splitter.word_ids("Apple apple APPLE Fox fox") == [0, 1, 2]


def test_words_are_cut_at_the_limit_and_counted(tmp_path: Path) -> None:
    encoder = load(write(keyed(), tmp_path / "vectors.txt", "text"), max_seq_length=2)
    tokens = encoder.tokenize(["the unknown fox the", "fox the", "fox"])
    assert tokens.lengths.tolist() == [2, 2, 1]
    assert tokens.untruncated_lengths.tolist() == [3, 2, 1]


def test_windows_hold_as_many_known_words_as_fit(tmp_path: Path) -> None:
    encoder = load(write(keyed(), tmp_path / "vectors.txt", "text"), max_seq_length=2)
    text = "the unknown fox, stone-the xyzzy bridge. fox"
    windows = [text[start:stop] for start, stop in encoder.split_into_windows(text, 0)]
    assert "".join(windows) == text
    tokens = encoder.tokenize(windows)
    assert tokens.untruncated_lengths.tolist() == tokens.lengths.tolist()
    assert int(tokens.untruncated_lengths.sum()) == 6


def test_chinese_is_split_by_jieba(tmp_path: Path) -> None:
    vectors = keyed(CHINESE)
    encoder = load(write(vectors, tmp_path / "vectors.bin", "binary"))
    made = encode(encoder, ["我们喜欢北京的天安门", "机器学习 OK", "ok"])
    wanted = [["我们", "喜欢", "北京", "的", "天安门"], ["机器", "学习", "ok"], ["ok"]]
    np.testing.assert_allclose(made, [vectors.get_mean_vector(some, pre_normalize=False) for some in wanted], atol=1e-6)
    assert encoder.tokenize(["它们"]).lengths.tolist() == [0]
    assert "jieba" in encoder.vector_space()["versions"]
    limited = load(tmp_path / "vectors.bin", max_seq_length=2)
    assert limited.split_into_windows("我们喜欢北京的天安门", 0) == [(0, 4), (4, 7), (7, 10)]


def test_jieba_is_silent_and_leaves_no_file(tmp_path: Path) -> None:
    path = write(keyed(CHINESE), tmp_path / "vectors.bin", "binary")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = """
import sys
from embedcli.core.job import Job
from embedcli.models import resolve
from embedcli.encoders.static import encoder as static_encoder
job = Job((), "", model=sys.argv[1])
encoder = static_encoder.load_static_encoder(resolve.resolve_model(job), job, print)
print(encoder.tokenize(["我们喜欢北京的天安门"]).lengths.tolist())
"""
    environment = os.environ | {"TMPDIR": str(temporary)}
    made = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, env=environment
    )
    assert made.stdout.strip() == "[5]"
    assert made.stderr == ""
    assert not list(temporary.iterdir())


def test_without_jieba_chinese_vectors_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(ModelError) as caught:
        load(write(keyed(CHINESE), tmp_path / "chinese.bin", "binary"))
    assert caught.value.hint == "pip install 'embedcli[chinese]'"
    load(write(keyed([*VOCABULARY, "中文"]), tmp_path / "english.bin", "binary"))


@pytest.mark.parametrize("size", [1, 50, 1 << 20], ids=["a text per slice", "small slices", "one slice"])
def test_texts_together_have_the_words_that_each_has_alone(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(word_splitter, "SLICE_CHARACTERS", size)
    pieces = ["ab", "Ab", "b", "é", "e\u0301", "Ж", "ß", "1_", "'", "\u2019", "-", " ", "\n", ".", "中", "\U0001f600"]
    pieces += ["\U00020000", "\u0800", "\uffdc", "\u200d", "unknown", "\x00"]
    index = {
        word: i
        for i, word in enumerate(["ab", "b", "é", "e\u0301", "ж", "ß", "ab'b", "b-é", "1_", "abab", "b-", "\u0800b"])
    }
    splitter = WordSplitter(index)
    random = np.random.default_rng(0)
    texts = ["", *("".join(random.choice(pieces, count)) for count in random.integers(0, 12, 3000)), ""]
    for some in (texts, [text for text in texts if text.isascii()], texts[:1], []):
        ids, offsets = splitter.find_word_ids(some)
        assert [ids.dtype.name, offsets.dtype.name] == ["int32", "int64"]
        assert [row.tolist() for row in np.split(ids, offsets[1:-1])][: len(some)] == [
            splitter.word_ids(text) for text in some
        ]
    alone = [splitter.word_ids(text) for text in texts]
    assert max(map(len, alone)) > 3


def test_a_chinese_text_among_others_is_split_by_jieba() -> None:
    index = {"自然语言": 0, "自然": 1, "处理": 2, "fox": 3}
    texts = ["a fox", "自然语言处理", "", "fox 处理"]
    ids, offsets = WordSplitter(index).find_word_ids(texts)
    assert [row.tolist() for row in np.split(ids, offsets[1:-1])] == [[3], [0, 2], [], [3, 2]]

"""Names people type for models, and what their files may not say: one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

E5 = {"query": "query: ", "document": "passage: "}
BGE_EN = {"query": "Represent this sentence for searching relevant passages: "}
BGE_ZH = {"query": "为这个句子生成表示以用于检索相关文章："}  # noqa: RUF001
NOMIC = {"query": "search_query: ", "document": "search_document: "}
MXBAI = {"query": "Represent this sentence for searching relevant passages: "}
SNOWFLAKE = {"query": "query: "}
E5_INSTRUCT = {"query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "}


@dataclass(frozen=True)
class Known:
    """A name for a model on the hub.

    `prompts` are those the model's makers document, by role; the model's own files may lack them. They are never
    applied unasked: they are what a warning tells the user to pass.
    """

    alias: str
    id: str
    notes: str = ""
    prompts: Mapping[str, str] | None = None


KNOWN: tuple[Known, ...] = (
    Known("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "English, small and fast; the default"),
    Known("all-MiniLM-L12-v2", "sentence-transformers/all-MiniLM-L12-v2", "English"),
    Known("all-mpnet-base-v2", "sentence-transformers/all-mpnet-base-v2", "English"),
    Known("all-distilroberta-v1", "sentence-transformers/all-distilroberta-v1", "English"),
    Known("multi-qa-MiniLM-L6-cos-v1", "sentence-transformers/multi-qa-MiniLM-L6-cos-v1", "English questions"),
    Known("multi-qa-mpnet-base-dot-v1", "sentence-transformers/multi-qa-mpnet-base-dot-v1", "English questions"),
    Known(
        "paraphrase-multilingual-MiniLM-L12-v2",
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        "50 languages",
    ),
    Known(
        "paraphrase-multilingual-mpnet-base-v2",
        "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
        "50 languages",
    ),
    Known(
        "distiluse-base-multilingual-cased-v2",
        "sentence-transformers/distiluse-base-multilingual-cased-v2",
        "50 languages, a Dense module",
    ),
    Known("LaBSE", "sentence-transformers/LaBSE", "109 languages, CLS pooling and a Dense module"),
    Known("static-retrieval-mrl-en-v1", "sentence-transformers/static-retrieval-mrl-en-v1", "static, English"),
    Known(
        "static-similarity-mrl-multilingual-v1",
        "sentence-transformers/static-similarity-mrl-multilingual-v1",
        "static, 50 languages",
    ),
    Known("text2vec-base-multilingual", "shibing624/text2vec-base-multilingual", "50 languages, 256 tokens"),
    Known("text2vec-base-chinese", "shibing624/text2vec-base-chinese", "Chinese, 128 tokens"),
    Known("text2vec-base-chinese-sentence", "shibing624/text2vec-base-chinese-sentence", "Chinese"),
    Known("text2vec-base-chinese-paraphrase", "shibing624/text2vec-base-chinese-paraphrase", "Chinese"),
    Known("text2vec-bge-large-chinese", "shibing624/text2vec-bge-large-chinese", "Chinese"),
    Known("text2vec-large-chinese", "GanymedeNil/text2vec-large-chinese", "Chinese; a raw Hugging Face folder"),
    Known(
        "w2v-light-tencent-chinese",
        "shibing624/text2vec-word2vec-tencent-chinese",
        "Chinese word vectors, 200 columns",
    ),
    Known(
        "bilingual-embedding-small",
        "Lajavaness/bilingual-embedding-small",
        "French and English; own code, needs --trust-remote-code",
    ),
    Known(
        "bilingual-embedding-base",
        "Lajavaness/bilingual-embedding-base",
        "French and English; own code, needs --trust-remote-code",
    ),
    Known(
        "bilingual-embedding-large",
        "Lajavaness/bilingual-embedding-large",
        "French and English; own code, needs --trust-remote-code",
    ),
    Known("m3e-small", "moka-ai/m3e-small", "Chinese"),
    Known("m3e-base", "moka-ai/m3e-base", "Chinese and English"),
    Known("m3e-large", "moka-ai/m3e-large", "Chinese"),
    Known("multilingual-e5-small", "intfloat/multilingual-e5-small", "100 languages", E5),
    Known("multilingual-e5-base", "intfloat/multilingual-e5-base", "100 languages", E5),
    Known("multilingual-e5-large", "intfloat/multilingual-e5-large", "100 languages", E5),
    Known(
        "multilingual-e5-large-instruct",
        "intfloat/multilingual-e5-large-instruct",
        "100 languages, instructions for queries",
        E5_INSTRUCT,
    ),
    Known("e5-small-v2", "intfloat/e5-small-v2", "English", E5),
    Known("e5-base-v2", "intfloat/e5-base-v2", "English", E5),
    Known("e5-large-v2", "intfloat/e5-large-v2", "English", E5),
    Known("bge-small-en-v1.5", "BAAI/bge-small-en-v1.5", "English, CLS pooling", BGE_EN),
    Known("bge-base-en-v1.5", "BAAI/bge-base-en-v1.5", "English, CLS pooling", BGE_EN),
    Known("bge-large-en-v1.5", "BAAI/bge-large-en-v1.5", "English, CLS pooling", BGE_EN),
    Known("bge-small-zh-v1.5", "BAAI/bge-small-zh-v1.5", "Chinese, CLS pooling", BGE_ZH),
    Known("bge-base-zh-v1.5", "BAAI/bge-base-zh-v1.5", "Chinese, CLS pooling", BGE_ZH),
    Known("bge-large-zh-v1.5", "BAAI/bge-large-zh-v1.5", "Chinese, CLS pooling", BGE_ZH),
    Known("bge-m3", "BAAI/bge-m3", "100 languages, 8,192 tokens, no prompts; dense vectors only"),
    Known("nomic-embed-text-v1.5", "nomic-ai/nomic-embed-text-v1.5", "English, 8,192 tokens, Matryoshka", NOMIC),
    Known("modernbert-embed-base", "nomic-ai/modernbert-embed-base", "English, 8,192 tokens", NOMIC),
    Known("gte-small", "thenlper/gte-small", "English"),
    Known("gte-base", "thenlper/gte-base", "English"),
    Known("gte-large", "thenlper/gte-large", "English"),
    Known("gte-small-zh", "thenlper/gte-small-zh", "Chinese"),
    Known("gte-base-zh", "thenlper/gte-base-zh", "Chinese"),
    Known("gte-large-zh", "thenlper/gte-large-zh", "Chinese"),
    Known("gte-modernbert-base", "Alibaba-NLP/gte-modernbert-base", "English, 8,192 tokens, CLS pooling"),
    Known(
        "gte-multilingual-base",
        "Alibaba-NLP/gte-multilingual-base",
        "70 languages, 8,192 tokens; own code, needs --trust-remote-code",
    ),
    Known("Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-0.6B", "100 languages, last-token pooling, Matryoshka"),
    Known("Qwen3-Embedding-4B", "Qwen/Qwen3-Embedding-4B", "100 languages, last-token pooling, Matryoshka"),
    Known("embeddinggemma-300m", "google/embeddinggemma-300m", "100 languages, Matryoshka; ask for access first"),
    Known("mxbai-embed-large-v1", "mixedbread-ai/mxbai-embed-large-v1", "English, CLS pooling, Matryoshka", MXBAI),
    Known(
        "snowflake-arctic-embed-m-v1.5",
        "Snowflake/snowflake-arctic-embed-m-v1.5",
        "English, CLS pooling",
        BGE_EN,
    ),
    Known(
        "snowflake-arctic-embed-l-v2.0",
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        "74 languages, 8,192 tokens",
        SNOWFLAKE,
    ),
    Known("potion-base-8M", "minishlab/potion-base-8M", "static, English"),
    Known("potion-base-32M", "minishlab/potion-base-32M", "static, English"),
    Known("potion-retrieval-32M", "minishlab/potion-retrieval-32M", "static, English"),
    Known("potion-multilingual-128M", "minishlab/potion-multilingual-128M", "static, 100 languages"),
)


def known(name: str) -> Known | None:
    """The entry whose alias, hub id or last path component is `name`, whatever its case."""
    wanted = name.lower()
    last = Path(name).name.lower()
    for entry in KNOWN:
        if wanted in (entry.alias.lower(), entry.id.lower()):
            return entry
    return next((entry for entry in KNOWN if last in (entry.alias.lower(), entry.id.lower().split("/")[-1])), None)

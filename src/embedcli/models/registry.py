"""Table of known models: alias, hub id, notes, and prompts that the model's files may lack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

E5_PROMPTS = {"query": "query: ", "document": "passage: "}
BGE_EN_PROMPTS = {"query": "Represent this sentence for searching relevant passages: "}
BGE_ZH_PROMPTS = {"query": "为这个句子生成表示以用于检索相关文章："}  # noqa: RUF001
NOMIC_PROMPTS = {"query": "search_query: ", "document": "search_document: "}
MXBAI_PROMPTS = {"query": "Represent this sentence for searching relevant passages: "}
SNOWFLAKE_PROMPTS = {"query": "query: "}
E5_INSTRUCT_PROMPTS = {
    "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
}


@dataclass(frozen=True)
class RegisteredModel:
    """An entry of the table of known models.

    Attributes:
        alias: The short name accepted by --model.
        hub_id: The model's OWNER/NAME on the hub.
        notes: What `embedcli models` says about it.
        prompts: Prompts by role, from the model's documentation. They are only suggested in a note, never applied.
    """

    alias: str
    hub_id: str
    notes: str = ""
    prompts: Mapping[str, str] | None = None


MODEL_REGISTRY: tuple[RegisteredModel, ...] = (
    RegisteredModel(
        "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "English, small and fast; the default"
    ),
    RegisteredModel("all-MiniLM-L12-v2", "sentence-transformers/all-MiniLM-L12-v2", "English"),
    RegisteredModel("all-mpnet-base-v2", "sentence-transformers/all-mpnet-base-v2", "English"),
    RegisteredModel("all-distilroberta-v1", "sentence-transformers/all-distilroberta-v1", "English"),
    RegisteredModel(
        "multi-qa-MiniLM-L6-cos-v1", "sentence-transformers/multi-qa-MiniLM-L6-cos-v1", "English questions"
    ),
    RegisteredModel(
        "multi-qa-mpnet-base-dot-v1", "sentence-transformers/multi-qa-mpnet-base-dot-v1", "English questions"
    ),
    RegisteredModel(
        "paraphrase-multilingual-MiniLM-L12-v2",
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        "50 languages",
    ),
    RegisteredModel(
        "paraphrase-multilingual-mpnet-base-v2",
        "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
        "50 languages",
    ),
    RegisteredModel(
        "distiluse-base-multilingual-cased-v2",
        "sentence-transformers/distiluse-base-multilingual-cased-v2",
        "50 languages, a Dense module",
    ),
    RegisteredModel("LaBSE", "sentence-transformers/LaBSE", "109 languages, CLS pooling and a Dense module"),
    RegisteredModel(
        "static-retrieval-mrl-en-v1", "sentence-transformers/static-retrieval-mrl-en-v1", "static, English"
    ),
    RegisteredModel(
        "static-similarity-mrl-multilingual-v1",
        "sentence-transformers/static-similarity-mrl-multilingual-v1",
        "static, 50 languages",
    ),
    RegisteredModel("text2vec-base-multilingual", "shibing624/text2vec-base-multilingual", "50 languages, 256 tokens"),
    RegisteredModel("text2vec-base-chinese", "shibing624/text2vec-base-chinese", "Chinese, 128 tokens"),
    RegisteredModel("text2vec-base-chinese-sentence", "shibing624/text2vec-base-chinese-sentence", "Chinese"),
    RegisteredModel("text2vec-base-chinese-paraphrase", "shibing624/text2vec-base-chinese-paraphrase", "Chinese"),
    RegisteredModel("text2vec-bge-large-chinese", "shibing624/text2vec-bge-large-chinese", "Chinese"),
    RegisteredModel(
        "text2vec-large-chinese", "GanymedeNil/text2vec-large-chinese", "Chinese; a raw Hugging Face folder"
    ),
    RegisteredModel(
        "w2v-light-tencent-chinese",
        "shibing624/text2vec-word2vec-tencent-chinese",
        "Chinese word vectors, 200 columns",
    ),
    RegisteredModel(
        "bilingual-embedding-small",
        "Lajavaness/bilingual-embedding-small",
        "French and English; loaded as XLM-RoBERTa",
    ),
    RegisteredModel(
        "bilingual-embedding-base",
        "Lajavaness/bilingual-embedding-base",
        "French and English; loaded as XLM-RoBERTa",
    ),
    RegisteredModel(
        "bilingual-embedding-large",
        "Lajavaness/bilingual-embedding-large",
        "French and English; loaded as XLM-RoBERTa",
    ),
    RegisteredModel("m3e-small", "moka-ai/m3e-small", "Chinese"),
    RegisteredModel("m3e-base", "moka-ai/m3e-base", "Chinese and English"),
    RegisteredModel("m3e-large", "moka-ai/m3e-large", "Chinese"),
    RegisteredModel("multilingual-e5-small", "intfloat/multilingual-e5-small", "100 languages", E5_PROMPTS),
    RegisteredModel("multilingual-e5-base", "intfloat/multilingual-e5-base", "100 languages", E5_PROMPTS),
    RegisteredModel("multilingual-e5-large", "intfloat/multilingual-e5-large", "100 languages", E5_PROMPTS),
    RegisteredModel(
        "multilingual-e5-large-instruct",
        "intfloat/multilingual-e5-large-instruct",
        "100 languages, instructions for queries",
        E5_INSTRUCT_PROMPTS,
    ),
    RegisteredModel("e5-small-v2", "intfloat/e5-small-v2", "English", E5_PROMPTS),
    RegisteredModel("e5-base-v2", "intfloat/e5-base-v2", "English", E5_PROMPTS),
    RegisteredModel("e5-large-v2", "intfloat/e5-large-v2", "English", E5_PROMPTS),
    RegisteredModel("bge-small-en-v1.5", "BAAI/bge-small-en-v1.5", "English, CLS pooling", BGE_EN_PROMPTS),
    RegisteredModel("bge-base-en-v1.5", "BAAI/bge-base-en-v1.5", "English, CLS pooling", BGE_EN_PROMPTS),
    RegisteredModel("bge-large-en-v1.5", "BAAI/bge-large-en-v1.5", "English, CLS pooling", BGE_EN_PROMPTS),
    RegisteredModel("bge-small-zh-v1.5", "BAAI/bge-small-zh-v1.5", "Chinese, CLS pooling", BGE_ZH_PROMPTS),
    RegisteredModel("bge-base-zh-v1.5", "BAAI/bge-base-zh-v1.5", "Chinese, CLS pooling", BGE_ZH_PROMPTS),
    RegisteredModel("bge-large-zh-v1.5", "BAAI/bge-large-zh-v1.5", "Chinese, CLS pooling", BGE_ZH_PROMPTS),
    RegisteredModel("bge-m3", "BAAI/bge-m3", "100 languages, 8,192 tokens, no prompts; see --heads"),
    RegisteredModel(
        "nomic-embed-text-v1.5", "nomic-ai/nomic-embed-text-v1.5", "English, 8,192 tokens, Matryoshka", NOMIC_PROMPTS
    ),
    RegisteredModel("modernbert-embed-base", "nomic-ai/modernbert-embed-base", "English, 8,192 tokens", NOMIC_PROMPTS),
    RegisteredModel("gte-small", "thenlper/gte-small", "English"),
    RegisteredModel("gte-base", "thenlper/gte-base", "English"),
    RegisteredModel("gte-large", "thenlper/gte-large", "English"),
    RegisteredModel("gte-small-zh", "thenlper/gte-small-zh", "Chinese"),
    RegisteredModel("gte-base-zh", "thenlper/gte-base-zh", "Chinese"),
    RegisteredModel("gte-large-zh", "thenlper/gte-large-zh", "Chinese"),
    RegisteredModel("gte-modernbert-base", "Alibaba-NLP/gte-modernbert-base", "English, 8,192 tokens, CLS pooling"),
    RegisteredModel(
        "gte-multilingual-base",
        "Alibaba-NLP/gte-multilingual-base",
        "70 languages, 8,192 tokens; loaded as GTE",
    ),
    RegisteredModel(
        "Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-0.6B", "100 languages, last-token pooling, Matryoshka"
    ),
    RegisteredModel("Qwen3-Embedding-4B", "Qwen/Qwen3-Embedding-4B", "100 languages, last-token pooling, Matryoshka"),
    RegisteredModel("embeddinggemma-300m", "google/embeddinggemma-300m", "100 languages, Matryoshka; gated"),
    RegisteredModel(
        "mxbai-embed-large-v1", "mixedbread-ai/mxbai-embed-large-v1", "English, CLS pooling, Matryoshka", MXBAI_PROMPTS
    ),
    RegisteredModel(
        "snowflake-arctic-embed-m-v1.5",
        "Snowflake/snowflake-arctic-embed-m-v1.5",
        "English, CLS pooling",
        BGE_EN_PROMPTS,
    ),
    RegisteredModel(
        "snowflake-arctic-embed-l-v2.0",
        "Snowflake/snowflake-arctic-embed-l-v2.0",
        "74 languages, 8,192 tokens",
        SNOWFLAKE_PROMPTS,
    ),
    RegisteredModel("potion-base-8M", "minishlab/potion-base-8M", "static, English"),
    RegisteredModel("potion-base-32M", "minishlab/potion-base-32M", "static, English"),
    RegisteredModel("potion-retrieval-32M", "minishlab/potion-retrieval-32M", "static, English"),
    RegisteredModel("potion-multilingual-128M", "minishlab/potion-multilingual-128M", "static, 100 languages"),
)


def find_registered_model(name: str) -> RegisteredModel | None:
    """The entry whose alias, hub id or last component of either matches `name`, ignoring case."""
    lowered = name.lower()
    last = Path(name).name.lower()
    for entry in MODEL_REGISTRY:
        if lowered in (entry.alias.lower(), entry.hub_id.lower()):
            return entry
    return next(
        (entry for entry in MODEL_REGISTRY if last in (entry.alias.lower(), entry.hub_id.lower().split("/")[-1])), None
    )

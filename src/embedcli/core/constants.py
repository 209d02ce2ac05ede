"""Names and sizes that several packages must agree on."""

from __future__ import annotations

DEFAULT_MODEL = "all-MiniLM-L6-v2"
# `--model openai:NAME`: the model NAME of a server with the OpenAI API.
HOSTED_PREFIX = "openai:"

# The column of vectors, and what the names of further ones begin with, those of other heads of the model.
VECTOR_COLUMN = "embedding"
HEAD_COLUMN_PREFIX = "embedding_"
# Columns that embedcli adds to an output, beside the id and the kept columns of the input.
WINDOW_COLUMNS = ("window", "char_start", "char_end")
ROW_INFO_COLUMNS = ("n_tokens", "truncated", "text_hash", *WINDOW_COLUMNS)
# No kept column may have one of these names. `row` holds the generated ids.
RESERVED_COLUMNS = frozenset({"row", VECTOR_COLUMN, *ROW_INFO_COLUMNS})

# The key of the vector space metadata that has the fingerprint of a sparse model's vocabulary.
VOCABULARY_KEY = "vocabulary"

# Names inside a folder output: the file that marks it as finished, the staging folder, the published files in any
# format. embedcli leaves files with other names alone.
MANIFEST_FILE = "_manifest.json"
STAGING_FOLDER = "_parts"
PART_FILE_PATTERN = r"part-\d{5,}([_-]\d{3,})?\.(parquet|npy|ids\.parquet|jsonl|jsonl\.space\.json|arrow)\Z"
# All names of files in a staging folder, also those of earlier versions. embedcli never removes anything else there.
STAGED_FILE_PATTERN = (
    r"part-\d+-\d+-[0-9a-f]+\.(arrow|parquet)|rejects-\d+-\d+-[0-9a-f]+\.jsonl|share-\d+-[0-9a-f]+\.json"
    r"|inputs-[0-9a-f]+\.json|_(manifest|ranges|starts|space|canaries|replacing|replaced)\.json|_lock(-\d+-of-\d+)?|_begin"
    rf"|{PART_FILE_PATTERN}"
)

# Rows per chunk where neither the user nor the device asks for another size (see `encoders.default_chunk_rows`).
DEFAULT_CHUNK_ROWS = 1024

# Texts per batch of other libraries become tokens per batch: most models read at most this many tokens of a text.
TOKENS_PER_TEXT = 512

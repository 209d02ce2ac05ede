"""Three examples for the help of each command, by its name as typed after `embedcli`; "" is the program itself."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "embedcli encode in.jsonl out.parquet",
        'embedcli search out.parquet "words to look for"',
        "embedcli plan in.jsonl",
    ),
    "encode": (
        "embedcli encode in.jsonl out.parquet",
        "embedcli encode in.csv out.parquet --text-column body --id-column key",
        "embedcli encode 'in/*.parquet' out/ --model e5-small-v2 --as document",
    ),
    "merge": (
        "embedcli merge out/",
        "embedcli merge out.parquet --max-rejects 0.1%",
        "embedcli merge out --to jsonl",
    ),
    "load": (
        "embedcli load out.parquet sqlite:vectors.db",
        "embedcli load out/ duckdb:vectors.duckdb --table docs --sync",
        "embedcli load out/ qdrant://localhost:6333/docs --index",
        "embedcli load out.parquet sqlite:vectors.db --table docs --swap",
    ),
    "plan": (
        "embedcli plan in.jsonl",
        "embedcli plan in.jsonl --sample 1000",
        "embedcli plan in.jsonl --model openai:text-embedding-3-small --price-per-mtok 0.02",
    ),
    "inspect": (
        "embedcli inspect in.csv",
        "embedcli inspect out.parquet",
        "embedcli inspect in.csv --delimiter semicolon --text-column body",
    ),
    "search": (
        'embedcli search out.parquet "words to look for"',
        'embedcli search out.parquet "words to look for" --count 3 --show title',
        "embedcli search out.parquet --queries queries.jsonl --to-file hits.parquet",
    ),
    "verify": (
        "embedcli verify out.parquet in.jsonl",
        "embedcli verify out.parquet in.jsonl --rows 1000",
        "embedcli verify out.parquet --only-output",
    ),
    "compare": (
        "embedcli compare out.parquet other.parquet",
        "embedcli compare out.parquet --precision int8 --precision binary",
        "embedcli compare out.parquet --truncate-dim 128 --plot loss.png",
    ),
    "eval": (
        "embedcli eval pairs.csv",
        "embedcli eval pairs.csv --model all-MiniLM-L6-v2 --model all-mpnet-base-v2",
        "embedcli eval documents.jsonl --queries queries.jsonl --relevance qrels.tsv",
    ),
    "plot": (
        "embedcli plot out.parquet map.html",
        "embedcli plot out.parquet map.html --color lang --label title",
        "embedcli plot out.parquet map.png --rows 5000",
    ),
    "report": (
        "embedcli report run.json",
        "embedcli report run.json --plot run.html",
        "embedcli report run.json --json",
    ),
    "bench": (
        "embedcli bench in.jsonl",
        "embedcli bench in.jsonl --rows 1000 --rounds 5",
        "embedcli bench in.jsonl --tune",
    ),
    "batch": (
        "embedcli batch export in.jsonl requests.jsonl --model openai:text-embedding-3-small",
        "embedcli batch import results.jsonl out.parquet",
    ),
    "batch export": (
        "embedcli batch export in.jsonl requests.jsonl --model openai:text-embedding-3-small",
        "embedcli batch export in.jsonl requests.jsonl --results results.jsonl",
        "embedcli batch export in.jsonl requests.jsonl --price-per-mtok 0.01",
    ),
    "batch import": (
        "embedcli batch import results.jsonl out.parquet",
        "embedcli batch import results.jsonl errors.jsonl out.parquet --allow-missing",
        "embedcli batch import results.jsonl out.parquet --input moved/in.jsonl",
    ),
    "models": ("embedcli models", "embedcli models --json", "embedcli models --compiled"),
    "pull": (
        "embedcli pull all-mpnet-base-v2",
        "embedcli pull intfloat/e5-small-v2 --revision main",
        "embedcli pull all-mpnet-base-v2 --cache-dir models",
    ),
}

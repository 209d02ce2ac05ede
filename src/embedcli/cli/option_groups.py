"""How the help groups options: panels with the options used most first, metavars, and the options of the short help."""

from __future__ import annotations

OWN_PANEL = "Options"
MODEL_PANEL, REPORT_PANEL, HOSTED_PANEL = "Model", "Report", "Hosted models"
# Panel -> fields of Job or parameters of commands, those used most first.
PANELS: dict[str, tuple[str, ...]] = {
    OWN_PANEL: (),
    "Input": (
        "text_column", "id_column", "keep", "template", "format", "encoding", "delimiter", "header", "quote", "escape",
        "skip_lines", "limit", "on_bad_row", "max_rejects",
    ),
    MODEL_PANEL: (
        "model", "as_", "prompt_name", "prompt", "revision", "offline", "cache_dir", "trust_remote_code",
        "code_revision",
    ),
    "Long texts": ("max_seq_length", "overflow", "split_overlap"),
    "Output": (
        "to", "precision", "heads", "truncate_dim", "normalize", "ranges_from", "top_k_terms", "min_weight",
        "pool_factor", "part_size",
    ),
    "Resume and update": (
        "overwrite", "update", "reuse", "max_removed", "stop_after", "max_seconds", "chunk_rows",
    ),
    "Speed": ("device", "engine", "dtype", "threads", "batch_tokens", "compile"),
    "Several machines": ("runner", "workers", "shard", "ray_address", "num_cpus", "num_gpus"),
    HOSTED_PANEL: (
        "base_url", "rpm", "tpm", "max_concurrency", "request_field", "omit_field", "tokenizer", "request_timeout",
        "retry_cap", "patience",
    ),
    REPORT_PANEL: ("progress", "report", "price", "quiet", "verbose", "install_completion", "show_completion", "help"),
}  # fmt: skip
# Options that `-h` shows; `--help` shows all. Commands with fewer options than that show theirs anyway.
COMMON_OPTIONS = frozenset(
    {
        "text_column", "id_column", "keep", "template", "limit", "max_rejects", "model", "as_", "offline",
        "max_seq_length", "overflow", "precision", "truncate_dim", "overwrite", "update", "stop_after", "device",
        "threads", "workers", "report", "quiet", "help",
    }
)  # fmt: skip
# What a value is, by field of Job, where its type does not say it.
METAVARS = {
    "model": "MODEL", "revision": "REVISION", "code_revision": "REVISION", "cache_dir": "PATH",
    "text_column": "COLUMN", "id_column": "COLUMN", "template": "TEXT", "keep": "COLUMN", "encoding": "ENCODING",
    "delimiter": "CHARACTER", "quote": "CHARACTER", "escape": "CHARACTER", "prompt_name": "NAME", "prompt": "TEXT",
    "ranges_from": "PATH", "device": "DEVICE", "max_rejects": "N|N%", "max_removed": "N|N%", "reuse": "PATH",
    "max_seconds": "SECONDS", "part_size": "SIZE", "shard": "K/N", "ray_address": "ADDRESS", "base_url": "URL",
    "request_field": "NAME=VALUE", "omit_field": "NAME", "request_timeout": "SECONDS", "retry_cap": "SECONDS",
    "patience": "SECONDS", "min_weight": "WEIGHT", "tokenizer": "NAME", "heads": "HEADS",
}  # fmt: skip
METAVARS_BY_TYPE = {int: "N", float: "N"}


def find_panel(name: str) -> str:
    """Return the panel of an option by its field of Job or its parameter; OWN_PANEL for a command's own options."""
    return next((panel for panel, names in PANELS.items() if name in names), OWN_PANEL)


def choose_metavar(name: str, value_type: object) -> str | None:
    """Return what the help calls the value of a job option; None if its choices are to be shown."""
    return METAVARS.get(name) or next((word for kind, word in METAVARS_BY_TYPE.items() if kind is value_type), None)

"""How a model wants to be used, read from its files alone: prompt, pooling, limit, normalisation, own code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import Role
from embedcli.models.files import ModelFiles, read_json
from embedcli.models.registry import find_registered_model

POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Saved prompts by role, first non-empty wins. sentence-transformers' own `encode_document` stops at an empty
# "document" and so never reaches a saved "passage".
ROLE_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus"), "none": ()}
# These count positions from padding_idx + 1, so two of the positions in their config hold no token.
OFFSET_POSITION_MODELS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "data2vec-text",
}
# A module with one way through it for queries and another for documents; Asym is its old name.
ROUTER_MODULES = {"Router", "Asym"}
# Above this a tokenizer's model_max_length means "no limit" (transformers writes 1e30).
UNLIMITED_LENGTH = int(1e20)


class PromptNote(str):
    """The note that says which prompt is used: `prompt`, and where it comes from."""

    prompt: str

    def __new__(cls, prompt: str, source: str) -> PromptNote:
        note = super().__new__(cls, f"prompt: {prompt!r} ({source})")
        note.prompt = prompt
        return note


@dataclass(frozen=True)
class ModelConfig:
    """What decides a model's vectors besides its weights, resolved for one job.

    `positions` is the longest padded sequence the model can take (None: any). `normalize` says whether the vectors
    come out with length 1; `has_normalize` whether the model's own pipeline ends so; `saved` whether there is such a
    pipeline (modules.json) or a raw Hugging Face folder. `prompt` is prepended to each
    text as is. `task` is the role that a model with a way for each role is told, None for its default way.
    `custom_code` names the files and classes that would run with --trust-remote-code and only then.
    """

    pooling: str
    max_seq_length: int | None
    max_positions: int | None
    normalize: bool
    has_normalize: bool
    prompts: Mapping[str, str]
    default_prompt_name: str | None
    prompt: str
    prompt_source: str
    pools_prompt: bool
    truncate_dim: int | None
    is_saved_pipeline: bool
    task: Role | None = None
    modules: tuple[str, ...] = ()
    custom_code: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_model_config(files: ModelFiles, job: Job) -> ModelConfig:
    """Read a model's own settings and resolve them for a job.

    Raises UsageError for an unknown prompt name, a limit the model cannot hold, and for a model with its own code
    when the job does not trust it.
    """
    folder = files.path
    modules = read_modules(folder)
    code = find_custom_code(folder, modules)
    if code and not job.trust_remote_code:
        _refuse_code(files, code)
    saved = _optional(folder / "config_sentence_transformers.json")
    _refuse_kind(files, str(saved.get("model_type", "SentenceTransformer")))
    prompts = {name: text for name, text in (saved.get("prompts") or {}).items() if text is not None}
    prompt, source = resolve_prompt(job, prompts, saved.get("default_prompt_name"))
    pooling, include_prompt = _pooling(folder, modules)
    limit, positions = _limits(folder, modules, job)
    # One further in front leaves the vectors at whatever length the modules behind it give them.
    has_normalize = modules[-1][0] == "Normalize"
    return ModelConfig(
        pooling=pooling,
        max_seq_length=limit,
        max_positions=positions,
        normalize=has_normalize if job.normalize is None else job.normalize,
        has_normalize=has_normalize,
        prompts=prompts,
        default_prompt_name=saved.get("default_prompt_name"),
        prompt=prompt,
        prompt_source=source,
        pools_prompt=include_prompt,
        truncate_dim=job.truncate_dim or saved.get("truncate_dim"),
        is_saved_pipeline=(folder / "modules.json").is_file(),
        task=_task(files, modules, job),
        modules=tuple(kind for kind, _ in modules),
        custom_code=code,
        notes=_notes(files, job, prompts, prompt, source),
    )


def model_identity(files: ModelFiles, recipe: ModelConfig, dtype: str) -> dict[str, Any]:
    """What decides the vectors, known before any model is loaded. `dtype` is "float32" or "half"."""
    return {
        "model": files.name,
        "revision": files.revision,
        "fingerprint": files.fingerprint,
        "pooling": recipe.pooling,
        "prompt": recipe.prompt,
        "max_seq_length": recipe.max_seq_length,
        "normalize": recipe.normalize,
        "truncate_dim": recipe.truncate_dim,
        "dtype": dtype,
        **({"task": recipe.task} if recipe.task else {}),
    }


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """The pipeline as (class name, subfolder) pairs; a raw Hugging Face folder is a Transformer and mean pooling.

    Classes that are not sentence-transformers' own keep their dotted name.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return [("Transformer", ""), ("Pooling", "")]
    made = []
    for module in read_json(path):
        kind = str(module["type"])
        if kind.startswith("sentence_transformers."):
            kind = kind.rpartition(".")[2]
        made.append((kind, str(module.get("path", ""))))
    return made


def resolve_prompt(job: Job, prompts: Mapping[str, str], default: str | None) -> tuple[str, str]:
    """The prompt of a job and where it comes from: --prompt, --prompt-name, --as, the model's default, or none."""
    if job.prompt is not None:
        return job.prompt, "--prompt"
    if job.prompt_name is not None:
        if job.prompt_name not in prompts:
            there = ", ".join(sorted(prompts)) or "no prompts"
            raise UsageError(
                f"{job.model} has no prompt named {job.prompt_name!r}; it has {there}",
                "take one of those with --prompt-name, or give the text with --prompt",
            )
        return prompts[job.prompt_name], f"--prompt-name {job.prompt_name}"
    if job.as_ is not None:
        name = next((name for name in ROLE_PROMPT_NAMES[job.as_] if prompts.get(name)), None)
        return (prompts[name], f"the model's prompt {name!r}") if name else ("", f"none for --as {job.as_}")
    if default and default in prompts:
        return prompts[default], f"the model's default prompt {default!r}"
    return "", "none"


def find_custom_code(folder: Path, modules: list[tuple[str, str]]) -> tuple[str, ...]:
    """The Python files, each with its class, that loading this model would run; empty for library classes only."""
    found: list[str] = []
    for kind, path in modules:
        if "." in kind:
            found.append(_named(kind))
        if "." in kind or kind == "Transformer":
            found += _auto_map(folder / path)
    return tuple(dict.fromkeys(found))


def _auto_map(folder: Path) -> list[str]:
    config = _optional(folder / "config.json")
    found = []
    if not _library_has(str(config.get("model_type", ""))):
        found += list((config.get("auto_map") or {}).values())
    auto = (_optional(folder / "tokenizer_config.json").get("auto_map") or {}).get("AutoTokenizer")
    found += [auto] if isinstance(auto, str) else [name for name in auto or () if name]
    return [_named(reference) for reference in found]


def _named(reference: str) -> str:
    """'modeling.Model' as 'modeling.py (Model)'; 'owner/repo--modeling.Model' keeps its repository."""
    repo, _, path = reference.rpartition("--")
    module, _, kind = path.rpartition(".")
    return f"{repo + ': ' if repo else ''}{module.replace('.', '/')}.py ({kind})"


def _library_has(model_type: str) -> bool:
    """Whether transformers brings this architecture itself; it then runs no code of the model's unless told to."""
    spec = find_spec("transformers") if model_type else None
    places = (spec.submodule_search_locations if spec else None) or ()
    return any((Path(place) / "models" / model_type.replace("-", "_")).is_dir() for place in places)


def _refuse_code(files: ModelFiles, code: tuple[str, ...]) -> None:
    raise UsageError(
        f"{files.name} brings its own Python code, which would run on this machine: {', '.join(code)}",
        f"read it in {files.path}, then add --trust-remote-code if you trust it",
    )


def _refuse_kind(files: ModelFiles, kind: str) -> None:
    if kind != "SentenceTransformer":
        raise ModelError(
            f"{files.name} was saved as a {kind}, which does not make one vector per text",
            "take an embedding model (see `embedcli models`)",
        )


def _pooling(folder: Path, modules: list[tuple[str, str]]) -> tuple[str, bool]:
    path = next((path for kind, path in modules if kind == "Pooling"), None)
    if path is None:
        return "none", True
    if not (folder / "modules.json").is_file():
        return _raw_pooling(folder), True
    config = _optional(folder / path / "config.json")
    modes = config.get("pooling_mode") or [mode for key, mode in POOLING_KEYS.items() if config.get(key)] or "mean"
    return modes if isinstance(modes, str) else "+".join(modes), bool(config.get("include_prompt", True))


def _raw_pooling(folder: Path) -> str:
    """Mean, but the last token for a causal language model, as sentence-transformers chooses."""
    config = _optional(folder / "config.json")
    causal = any(str(name).endswith("ForCausalLM") for name in (config.get("architectures") or [])[:1])
    return "lasttoken" if causal and config.get("is_causal", True) else "mean"


def _task(files: ModelFiles, modules: list[tuple[str, str]], job: Job) -> Role | None:
    """The role that the ways through a model are chosen by. UsageError where one is needed and none is given."""
    roots = [files.path / path for kind, path in modules if kind in ROUTER_MODULES]
    if roots and job.as_ in ("query", "document"):
        return job.as_
    for root in roots:
        parameters = (_optional(root / "router_config.json") or _optional(root / "config.json")).get("parameters") or {}
        if not (parameters.get("default_route") or parameters.get("allow_empty_key", True)) and not parameters.get(
            "route_mappings"
        ):
            raise UsageError(
                f"{files.name} encodes queries in one way and documents in another, and has no default",
                "add --as query or --as document",
            )
    return None


def _limits(folder: Path, modules: list[tuple[str, str]], job: Job) -> tuple[int | None, int | None]:
    kind, path = modules[0]
    if kind != "Transformer" and "." not in kind:
        return job.max_seq_length, None
    root = folder / path
    positions = _positions(_optional(root / "config.json"))
    if job.max_seq_length is not None:
        if positions is not None and job.max_seq_length > positions:
            raise UsageError(
                f"--max-seq-length {job.max_seq_length} is more than the {positions} tokens {job.model} can hold",
                f"give {positions} or less",
            )
        return job.max_seq_length, positions
    limit = _own_limit(root)
    return (min(limit, positions) if limit and positions else limit or positions), positions


def _own_limit(root: Path) -> int | None:
    saved = next((made for name in TRANSFORMER_CONFIGS if (made := _optional(root / name))), {})
    given = saved.get("processor_kwargs") or saved.get("tokenizer_args") or {}
    tokenizer = _optional(root / "tokenizer_config.json")
    for limit in (
        given.get("model_max_length"),
        saved.get("max_seq_length"),
        tokenizer.get("model_max_length", tokenizer.get("max_len")),
    ):
        if limit is not None:
            return int(limit) if limit < UNLIMITED_LENGTH else None
    return None


def _positions(config: dict[str, Any]) -> int | None:
    held = (config.get("text_config") or config).get("max_position_embeddings")
    if not isinstance(held, int) or held <= 0:
        return None
    return held - 2 if config.get("model_type") in OFFSET_POSITION_MODELS else held


def _notes(files: ModelFiles, job: Job, prompts: Mapping[str, str], prompt: str, source: str) -> tuple[str, ...]:
    notes: list[str] = []
    if not (files.path / "modules.json").is_file() and files.kind == "transformer":
        notes.append(f"{files.name} has no modules.json: {_raw_pooling(files.path)} pooling is used")
    if prompt or job.as_ in ("query", "document"):
        notes.append(PromptNote(prompt, source))
    family = find_registered_model(files.name)
    if family and family.prompts and not any(prompts.values()) and job.prompt is None and job.as_ != "none":
        wanted = " or ".join(f"--prompt {text!r} for {_plural(role)}" for role, text in family.prompts.items())
        notes.append(f"{family.alias} was trained with prompts that its files do not hold; pass {wanted}")
    return tuple(notes)


def _plural(role: str) -> str:
    return {"query": "queries", "document": "documents"}[role]


def _optional(path: Path) -> dict[str, Any]:
    made = read_json(path) if path.is_file() else {}
    return made if isinstance(made, dict) else {}

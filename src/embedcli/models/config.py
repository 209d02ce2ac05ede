"""Inference settings read from a model's files: prompt, pooling, token limit, normalization, custom code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import Role, VectorKind
from embedcli.models.adapters import tokenizer_folder
from embedcli.models.code import CodeReference, list_repositories
from embedcli.models.code_repositories import check_code_is_trusted, read_code_references
from embedcli.models.files import ROUTER_MODULES, ModelFiles, read_json_object, read_modules, read_routes
from embedcli.models.heads import resolve_heads
from embedcli.models.kind_options import check_options_for_kind
from embedcli.models.limits import resolve_max_seq_length
from embedcli.models.multi_vector import MultiVectorSettings, read_multi_vector_settings
from embedcli.models.native import NativeEquivalent, find_native_modules
from embedcli.models.refusals import find_vector_kind, refuse_missing_packages, refuse_other_kinds
from embedcli.models.registry import find_registered_model
from embedcli.models.routes import find_input_module, list_routed_modules
from embedcli.models.traits import ModelTraits

POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# How the vectors of tokens become what a head stores of a row.
HEAD_POOLING: dict[VectorKind, str] = {"sparse": "max", "multi_vector": "none"}
# Names of saved prompts by role; the first that is not empty is used. `encode_document` of sentence-transformers stops
# at an empty "document" and so never reaches a saved "passage".
ROLE_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus"), "none": ()}


class PromptNote(str):
    """The note that shows the prompt used and where it comes from.

    Attributes:
        prompt: The prompt.
        source: Where it comes from.
    """

    prompt: str
    source: str

    def __new__(cls, prompt: str, source: str) -> PromptNote:
        note = super().__new__(cls, f"prompt: {prompt!r} ({source})")
        note.prompt, note.source = prompt, source
        return note

    def __reduce__(self) -> tuple[type[PromptNote], tuple[str, str]]:
        """How it is restored in another process."""
        return PromptNote, (self.prompt, self.source)


@dataclass(frozen=True)
class ModelConfig:
    """Inference settings of a model, resolved for one job: what decides its vectors besides the weights.

    Attributes:
        pooling: Pooling modes of sentence-transformers, joined by "+"; "none" if there is no Pooling module.
        max_seq_length: Rows are truncated to this many tokens, prompt and special tokens included; None: no limit.
        max_positions: The longest padded sequence the model accepts, in tokens; None: any.
        normalize: Whether the vectors are scaled to length 1.
        loses_unit_length: Whether vectors are truncated as the model's files say, and not normalized again, as in
            sentence-transformers.
        has_normalize: Whether the model's own pipeline ends with a Normalize module.
        prompts: The prompts saved with the model, by name.
        prompt: Prepended to each text as it is.
        prompt_source: Where `prompt` comes from, for people.
        pools_prompt: Whether pooling includes the prompt's tokens.
        truncate_dim: Keep this many dimensions; None: all.
        is_saved_pipeline: Whether the folder has a modules.json; otherwise it is a raw Hugging Face folder.
        task: The route of a model that encodes queries and documents differently; None: its default route.
        modules: Class names of the pipeline's modules; dotted if they are not from sentence-transformers.
        custom_code: Classes whose code runs only with --trust-remote-code.
        native: Modules with own code that are loaded as an architecture of transformers, by their config.json.
        notes: Lines to show to the user.
        traits: What was measured of the model; None: nothing yet.
        kind: The kind of its vectors.
        heads: The heads that are computed in place of the model's own vectors; empty: none.
    """

    pooling: str
    max_seq_length: int | None
    max_positions: int | None
    normalize: bool
    loses_unit_length: bool
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
    custom_code: tuple[CodeReference, ...] = ()
    native: Mapping[Path, NativeEquivalent] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    traits: ModelTraits | None = None
    kind: VectorKind = "dense"
    heads: tuple[VectorKind, ...] = ()


def read_model_config(files: ModelFiles, job: Job, traits: ModelTraits | None = None) -> ModelConfig:
    """Read a model's settings from its files and resolve them for a job.

    Args:
        files: The model.
        job: The job.
        traits: What was measured of the model; None if nothing was.

    Raises:
        UsageError: The prompt name is unknown, the token limit is above the model's, or the model has custom code
            that the job does not trust.
        ModelError: A file cannot be read, or the model does not compute one vector per text.
    """
    folder = files.path
    modules = read_modules(folder)
    refuse_other_kinds(files, modules)
    kind, heads = _resolve_kinds(files, modules, job)
    task: Role | None = _choose_route(files, modules, job)
    first = find_input_module(folder, modules, task)
    if files.kind == "transformer":
        refuse_missing_packages(files, tokenizer_folder(files, first[1]))
    native = find_native_modules(folder, trusts_code=job.trust_remote_code) if files.kind == "transformer" else {}
    custom_code = read_code_references(files, native)
    check_code_is_trusted(files, custom_code, job)
    saved = read_json_object(folder / "config_sentence_transformers.json")
    multi_vector = None
    if kind == "multi_vector" and not heads:
        multi_vector = read_multi_vector_settings(folder, modules, job, folder / first[1])
        task = multi_vector.role
    prompts, prompt, source = _choose_prompt(saved, multi_vector, job)
    pooling, pools_prompt = _read_pooling(files, modules, task, heads)
    base = files.find_base(first[1])
    max_seq_length, max_positions = resolve_max_seq_length(
        folder, [first], job, base=base, traits=traits, role_limit=None if multi_vector is None else multi_vector.limit
    )
    saved_dim = None if multi_vector else _read_saved_dim(files, saved, heads)
    has_normalize = _normalizes_vectors(modules, multi_vector, heads)
    config = ModelConfig(
        pooling=pooling,
        max_seq_length=max_seq_length,
        max_positions=max_positions,
        normalize=has_normalize if job.normalize is None else job.normalize,
        loses_unit_length=bool(saved_dim) and job.truncate_dim is None and not job.normalize,
        has_normalize=has_normalize,
        prompts=prompts,
        default_prompt_name=saved.get("default_prompt_name"),
        prompt=prompt,
        prompt_source=source,
        pools_prompt=pools_prompt,
        truncate_dim=job.truncate_dim or saved_dim,
        is_saved_pipeline=(folder / "modules.json").is_file(),
        task=task,
        modules=tuple(kind for kind, _ in modules),
        custom_code=custom_code,
        native=native,
        traits=traits,
        kind=kind,
        heads=heads,
    )
    return replace(config, notes=tuple(_write_notes(files, job, config, multi_vector)))


def _resolve_kinds(
    files: ModelFiles, modules: list[tuple[str, str]], job: Job
) -> tuple[VectorKind, tuple[VectorKind, ...]]:
    """The kind of vectors that come first in the output, and the heads that compute them if there are several."""
    kind = find_vector_kind(files.path, modules)
    heads = resolve_heads(files, modules, job, kind)
    kind = heads[0] if heads else kind
    check_options_for_kind(job, kind, heads)
    return kind, heads


def _choose_prompt(
    saved: Mapping[str, Any], multi_vector: MultiVectorSettings | None, job: Job
) -> tuple[dict[str, str], str, str]:
    """The named prompts of a model, the prompt of a job, and where it comes from."""
    if multi_vector is None:
        prompts = {name: text for name, text in (saved.get("prompts") or {}).items() if text is not None}
    else:
        prompts = dict(multi_vector.prompts)
        if job.as_ is None and multi_vector.role in prompts:
            # Texts of a multi-vector model are documents unless the job says otherwise.
            job = replace(job, as_=multi_vector.role)
    prompt, source = resolve_prompt(job, prompts, saved.get("default_prompt_name"))
    return prompts, prompt, source


def native_types(config: ModelConfig) -> dict[str, str]:
    """What the vector space metadata says of an equivalent of a model's own code: {"loaded_as": TYPE}, or nothing.

    It does not identify the vectors: those of the own code are the same, so jobs may change between the two.
    """
    types = sorted({equivalent.native_type for equivalent in config.native.values()})
    return {"loaded_as": ", ".join(types)} if types else {}


def model_identity(files: ModelFiles, config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The part of the vector space metadata that is known before the model is loaded.

    Args:
        files: The model.
        config: Its settings for the job.
        dtype: The precision class, "float32" or "half".
    """
    return {
        "model": files.name,
        "revision": files.revision,
        "fingerprint": files.fingerprint,
        "pooling": config.pooling,
        "prompt": config.prompt,
        "max_seq_length": config.max_seq_length,
        "normalize": config.normalize and not config.loses_unit_length,
        "truncate_dim": config.truncate_dim,
        "dtype": dtype,
        **({"task": config.task} if config.task else {}),
        **({"heads": list(config.heads)} if config.heads else {}),
        **({"code": {code.name: code.commit for code in files.code_repositories}} if files.code_repositories else {}),
    }


def describe_heads(config: ModelConfig, dims: Mapping[VectorKind, int]) -> dict[VectorKind, dict[str, Any]]:
    """What the vector space metadata say of the vectors of each head that a job computes.

    Args:
        config: The model's settings for the job.
        dims: The dimensions of each head.
    """
    described: dict[VectorKind, dict[str, Any]] = {}
    for head in config.heads:
        pooling = config.pooling if head == "dense" else HEAD_POOLING[head]
        normalize = config.normalize if head == "dense" else head == "multi_vector"
        described[head] = {"heads": [head], "dim": dims[head], "pooling": pooling, "normalize": normalize}
        if head != "dense":
            described[head]["kind"] = head
    return described


def resolve_prompt(job: Job, prompts: Mapping[str, str], default: str | None) -> tuple[str, str]:
    """Choose the prompt of a job by --prompt, --prompt-name, --as or the model's default, in this order.

    Args:
        job: The job.
        prompts: The prompts saved with the model, by name.
        default: The name of the model's default prompt.

    Returns:
        The prompt, and where it comes from.

    Raises:
        UsageError: The model has no prompt of the name given.
    """
    if job.prompt is not None:
        return job.prompt, "--prompt"
    if job.prompt_name is not None:
        if job.prompt_name not in prompts:
            if not prompts:
                raise UsageError(
                    f"{job.model} has no prompt named {job.prompt_name!r}; it has no prompts",
                    "give the text that stands before each row: --prompt TEXT",
                )
            raise UsageError(
                f"{job.model} has no prompt named {job.prompt_name!r}; it has {', '.join(sorted(prompts))}",
                "use one of those with --prompt-name, or give the text with --prompt",
            )
        return prompts[job.prompt_name], f"--prompt-name {job.prompt_name}"
    if job.as_ is not None:
        name = next((name for name in ROLE_PROMPT_NAMES[job.as_] if prompts.get(name)), None)
        return (prompts[name], f"the model's prompt {name!r}") if name else ("", f"none for --as {job.as_}")
    if default and default in prompts:
        return prompts[default], f"the model's default prompt {default!r}"
    return "", "none"


def _read_saved_dim(files: ModelFiles, saved: Mapping[str, Any], heads: tuple[VectorKind, ...]) -> int | None:
    """The dimension that the model's files cut its own vectors to. Raises UsageError if they are one of several."""
    saved_dim: int | None = saved.get("truncate_dim")
    if saved_dim and "dense" in heads:
        raise UsageError(
            f"{files.name} cuts its dense vectors to {saved_dim} dimensions, which several heads cannot do",
            "encode the dense vectors in a job of their own",
        )
    return None if heads else saved_dim


def _read_pooling(
    files: ModelFiles, modules: list[tuple[str, str]], task: str | None, heads: tuple[VectorKind, ...]
) -> tuple[str, bool]:
    """The pooling modes, and whether they include the prompt."""
    if heads and "dense" not in heads:
        return HEAD_POOLING[heads[0]], True
    folder = files.path
    paths = dict(reversed(list_routed_modules(folder, modules, task)))
    kind = find_vector_kind(folder, modules)
    if kind == "multi_vector":
        return "none", True
    if kind == "sparse":
        return _read_sparse_pooling(folder, paths.get("SpladePooling")), True
    path = paths.get("Pooling")
    if path is None:
        return "none", True
    if not (folder / "modules.json").is_file():
        return _default_pooling(files), True
    config = read_json_object(folder / path / "config.json")
    modes = config.get("pooling_mode") or [mode for key, mode in POOLING_KEYS.items() if config.get(key)] or "mean"
    return modes if isinstance(modes, str) else "+".join(modes), bool(config.get("include_prompt", True))


def _read_sparse_pooling(folder: Path, path: str | None) -> str:
    """How a sparse encoder makes one vector of those of its tokens."""
    if path is None:
        return "none" if (folder / "modules.json").is_file() else "splade_max"
    return f"splade_{read_json_object(folder / path / 'config.json').get('pooling_strategy', 'max')}"


def _default_pooling(files: ModelFiles) -> str:
    """As sentence-transformers does: the last token for a causal language model, otherwise the mean."""
    config = read_json_object((files.find_base("") or files.path) / "config.json")
    is_causal = any(str(name).endswith("ForCausalLM") for name in (config.get("architectures") or [])[:1])
    return "lasttoken" if is_causal and config.get("is_causal", True) else "mean"


def _choose_route(files: ModelFiles, modules: list[tuple[str, str]], job: Job) -> Role | None:
    """The route of a model that encodes queries and documents differently. Raises UsageError if it needs --as."""
    routers = [files.path / path for kind, path in modules if kind in ROUTER_MODULES]
    if routers and job.as_ in ("query", "document"):
        return job.as_
    for router in routers:
        parameters = read_routes(router).get("parameters") or {}
        has_default = parameters.get("default_route") or parameters.get("allow_empty_key", True)
        if not has_default and not parameters.get("route_mappings"):
            raise UsageError(
                f"{files.name} encodes queries and documents differently, and has no default",
                "add --as query or --as document",
            )
    return None


def _normalizes_vectors(
    modules: Sequence[tuple[str, str]], multi_vector: MultiVectorSettings | None, heads: tuple[VectorKind, ...]
) -> bool:
    """Whether the model gives its vectors, or those of the first head, the length 1."""
    if multi_vector is not None:
        return multi_vector.has_normalize
    if heads and "dense" not in heads:
        return heads[0] == "multi_vector"
    # Only the last module counts: modules behind a Normalize change the length again.
    return modules[-1][0] == "Normalize"


def _write_notes(
    files: ModelFiles, job: Job, config: ModelConfig, multi_vector: MultiVectorSettings | None
) -> Iterator[str]:
    """What the user should know: about pooling and prompts, the model's code, its missing files and batches."""
    if config.kind == "dense" and not config.is_saved_pipeline and files.kind == "transformer":
        yield f"{files.name} has no modules.json: {_default_pooling(files)} pooling is used"
    if config.prompt or job.as_ in ("query", "document"):
        yield PromptNote(config.prompt, config.prompt_source)
    known = find_registered_model(files.name)
    if known and known.prompts and not any(config.prompts.values()) and job.prompt is None and job.as_ != "none":
        plurals = {"query": "queries", "document": "documents"}
        options = " or ".join(f"--prompt {text!r} for {plurals[role]}" for role, text in known.prompts.items())
        yield f"{known.alias} was trained with prompts that its files lack; use {options}"
    yield from _write_code_notes(files, job, config.custom_code, config.native)
    yield from (f"{files.name} {assumed}" for assumed in (multi_vector.missing if multi_vector else ()))
    yield from _describe_batches(files, config.traits)


def _write_code_notes(
    files: ModelFiles, job: Job, references: tuple[CodeReference, ...], native: Mapping[Path, NativeEquivalent]
) -> tuple[str, ...]:
    for equivalent in native.values():
        if equivalent.own_type != equivalent.native_type:
            return (f"{files.name} is loaded as {equivalent.native_type} of transformers: its own code is not run",)
    if job.code_revision and not list_repositories(references, files.name):
        return (f"--code-revision has no effect: no code of {files.name} in another repository would run",)
    return tuple(f"code: {code.name} at {code.commit}" for code in files.code_repositories)


def _describe_batches(files: ModelFiles, traits: ModelTraits | None) -> tuple[str, ...]:
    if traits is not None and traits.needs_single_rows:
        return (f"vectors of {files.name} depend on the other rows of a batch: rows are encoded one at a time",)
    if traits is not None and traits.needs_equal_lengths:
        return (f"vectors of {files.name} depend on padding: rows of equal length are encoded together",)
    return ()

"""Choose the prompt of a call, and the encoder that puts it before the texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import Role
from embedcli.models.config import ModelConfig, read_model_config, resolve_prompt
from embedcli.models.files import ROUTER_MODULES, ModelFiles


@dataclass(frozen=True)
class SavedPrompts:
    """What decides how a model's prompts are used.

    Attributes:
        prompts: The prompts saved with the model, by name.
        default_name: The name of its default prompt; None if it has none.
        is_plain_text: Whether a prompt only adds text before the text. Otherwise pooling leaves its tokens out,
            or the model's own code reads it.
        has_roles: Whether the model encodes queries and documents differently, besides the prompt.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_name: str | None = None
    is_plain_text: bool = True
    has_roles: bool = True


@dataclass(frozen=True)
class PromptPlan:
    """How the texts of a call get their prompt.

    Attributes:
        job: The job of the encoder that is needed.
        prefix: What to put before each text, because that encoder does not do it.
    """

    job: Job
    prefix: str = ""


def read_saved_prompts(job: Job, files: ModelFiles | None) -> SavedPrompts:
    """Read what a model's files say of prompts; `files` is None for a hosted model."""
    if files is None:
        return SavedPrompts()
    config = read_model_config(files, job)
    return SavedPrompts(
        config.prompts,
        config.default_prompt_name,
        # Windows of a long text get the prompt each.
        config.pools_prompt and not config.custom_code and job.overflow != "pool",
        any(module in ROUTER_MODULES for module in config.modules) or has_token_roles(config),
    )


def has_token_roles(config: ModelConfig) -> bool:
    """Whether a multi-vector model has other limits and skipped tokens for queries than for documents."""
    return config.kind == "multi_vector" and not config.heads


def plan_prompt(
    job: Job, saved: SavedPrompts, role: Role | None, prompt: str | None, prompt_name: str | None
) -> PromptPlan:
    """Plan how the texts of a call get their prompt, with as few loaded encoders as possible.

    Args:
        job: The job that the model was loaded with.
        saved: The model's prompts.
        role: The kind of the texts, where the caller named one.
        prompt: The text to put before each text.
        prompt_name: The name of a saved prompt; ignored if `prompt` is given.

    Raises:
        UsageError: The model has no prompt of this name, or the job has a prompt that would be used for all roles.
    """
    if role is None and prompt is None and prompt_name is None:
        return PromptPlan(job)
    if role is not None and prompt is None and prompt_name is None:
        refuse_one_prompt_for_all_roles(job, role)
    asked = replace(job, as_=role or job.as_, prompt=prompt, prompt_name=prompt_name)
    text = resolve_prompt(asked, saved.prompts, saved.default_name)[0]
    same_role = asked.as_ == job.as_ or not saved.has_roles
    base = resolve_prompt(job, saved.prompts, saved.default_name)[0]
    if same_role and text == base:
        return PromptPlan(job)
    role_job = replace(asked, as_=job.as_ if same_role else asked.as_, prompt_name=None)
    if not saved.is_plain_text:
        return PromptPlan(replace(role_job, prompt=text))
    return PromptPlan(job if same_role and not base else replace(role_job, prompt=""), text)


def refuse_one_prompt_for_all_roles(job: Job, role: Role) -> None:
    """Raise UsageError if the model was loaded with a prompt, which is hardly meant for queries and documents alike."""
    if job.prompt is not None or job.prompt_name is not None:
        raise UsageError(
            f"the model was loaded with a prompt for all texts, and encode_{role} was called",
            f"give the prompt to encode_{role}, or use encode",
        )

"""Known servers: limits, request fields and other differences from OpenAI, each from its public documentation.

A server that is not listed gets OpenAI's dialect; what it refuses is found out by the first request, and the sizes that
it accepts by the first ones that it rejects. Servers that run anywhere have no domain here: they are listed for the
documentation (docs/guides/hosted-models.md). Facts are those of 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# OpenAI's limits for one request, from the reference of POST /v1/embeddings.
MAX_REQUEST_INPUTS = 2048
MAX_REQUEST_TOKENS = 300_000


@dataclass(frozen=True)
class HostDialect:
    """How requests to a server differ from those to OpenAI.

    Attributes:
        name: The name for people.
        documentation: Address of the page that the facts are from.
        domains: Host names; names below them belong to the server too. Empty if it runs anywhere.
        max_inputs: Texts per request; None if not documented: OpenAI's limit is tried.
        max_request_tokens: Tokens per request; None as above.
        text_tokens: Tokens per text of every model, for the documentation only; None if it depends on the model.
        dimensions_field: The request field that shortens vectors.
        role_field: The request field for the kind of text; None if there is none.
        role_values: Its values by the value of --as.
        key_header: The header that carries the key, alone or after "Bearer" in Authorization.
        notes: Behaviour that people should know, for the documentation only.
    """

    name: str
    documentation: str
    domains: tuple[str, ...] = ()
    max_inputs: int | None = None
    max_request_tokens: int | None = None
    text_tokens: int | None = None
    dimensions_field: str = "dimensions"
    role_field: str | None = None
    role_values: Mapping[str, str] = field(default_factory=dict)
    key_header: str = "Authorization"
    notes: str = ""

    def role_fields(self, role: str | None) -> dict[str, str]:
        """The request fields for a value of --as; empty if the server has none for it."""
        value = self.role_values.get(role or "")
        return {self.role_field: value} if self.role_field and value else {}


OPENAI = HostDialect(
    "OpenAI",
    "https://platform.openai.com/docs/api-reference/embeddings/create",
    ("api.openai.com",),
    max_inputs=MAX_REQUEST_INPUTS,
    max_request_tokens=MAX_REQUEST_TOKENS,
    text_tokens=8192,
)
KNOWN_HOSTS = (
    OPENAI,
    HostDialect(
        "Azure OpenAI",
        "https://learn.microsoft.com/en-us/azure/foundry/openai/how-to/embeddings",
        ("openai.azure.com", "cognitiveservices.azure.com", "services.ai.azure.com"),
        max_inputs=2048,
        text_tokens=8192,
        key_header="api-key",
        notes="address `https://NAME.openai.azure.com/openai/v1`, or "
        "`.../openai/deployments/DEPLOYMENT?api-version=VERSION`; the model is the name of the deployment",
    ),
    HostDialect(
        "Gemini",
        "https://github.com/geldata/gel/issues/9032",
        ("generativelanguage.googleapis.com",),
        max_inputs=100,
        text_tokens=2048,
        notes="address `https://generativelanguage.googleapis.com/v1beta/openai`; leaves out the first `index`",
    ),
    HostDialect(
        "Mistral",
        "https://docs.mistral.ai/api/endpoint/embeddings",
        ("api.mistral.ai",),
        max_inputs=256,
        dimensions_field="output_dimension",
        notes="the limit of 256 is [what others have found]"
        "(https://docs.rs/crate/rig-core/0.42.0/source/src/providers/mistral/embedding.rs)",
    ),
    HostDialect(
        "Voyage",
        "https://www.mongodb.com/docs/api/doc/atlas-embedding-and-reranking-api/operation/operation-createembedding",
        ("api.voyageai.com", "ai.mongodb.com"),
        max_inputs=1000,
        max_request_tokens=120_000,
        dimensions_field="output_dimension",
        role_field="input_type",
        role_values={"query": "query", "document": "document"},
        notes="cuts long texts unless `--request-field truncation=false`",
    ),
    HostDialect(
        "Cohere (compatible endpoint)",
        "https://docs.cohere.com/docs/compatibility-api",
        ("api.cohere.ai", "api.cohere.com"),
        max_inputs=96,
        notes="address `https://api.cohere.ai/compatibility/v1`; 96 is the limit of Cohere's own Embed API",
    ),
    HostDialect(
        "NVIDIA NIM",
        "https://docs.nvidia.com/nim/nemo-retriever/text-embedding/2.2.0/reference.html",
        ("integrate.api.nvidia.com", "ai.api.nvidia.com"),
        role_field="input_type",
        role_values={"query": "query", "document": "passage"},
        notes="older models need `--as`; on your own machine `--request-field input_type=passage`; "
        "`--request-field truncate=END` cuts long texts instead of refusing them",
    ),
    HostDialect(
        "DashScope",
        "https://www.alibabacloud.com/help/en/model-studio/text-embedding-synchronous-api",
        ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
        max_inputs=10,
        max_request_tokens=81_920,
        text_tokens=8192,
        notes="address `https://dashscope-intl.aliyuncs.com/compatible-mode/v1`",
    ),
    HostDialect(
        "Together",
        "https://developers.llamaindex.ai/python/framework-api-reference/embeddings/together",
        ("api.together.xyz", "api.together.ai"),
    ),
    HostDialect(
        "vLLM",
        "https://github.com/vllm-project/vllm/issues/29496",
        notes="hangs on some mixtures of lengths: the request is halved after one timeout",
    ),
    HostDialect(
        "text-embeddings-inference",
        "https://github.com/huggingface/text-embeddings-inference/issues/723",
        notes="32 texts per request unless it is started with more; a larger request is refused and halved",
    ),
    HostDialect(
        "llama.cpp",
        "https://github.com/ggml-org/llama.cpp/issues/12295",
        notes="500 for a text longer than its physical batch: the text is found and rejected",
    ),
    HostDialect(
        "Ollama",
        "https://github.com/ollama/ollama/issues/12921",
        notes="500 for a text whose vector has NaN: the text is found and rejected; long texts are cut",
    ),
    HostDialect("LM Studio", "https://lmstudio.ai/docs/text-embeddings"),
    HostDialect("infinity", "https://github.com/michaelfeil/infinity"),
)


def find_dialect(host: str) -> HostDialect:
    """Return the dialect of a host by its name; OpenAI's for an unknown one."""
    name = host.lower().rstrip(".")
    for dialect in KNOWN_HOSTS:
        if any(name == domain or name.endswith(f".{domain}") for domain in dialect.domains):
            return dialect
    return OPENAI

"""Export and import of OpenAI Batch API files.

    export_requests(job, "requests.jsonl", notify)     requests.jsonl, requests-00002.jsonl, ... and requests.job.json
    job = load_job(results, output=...)                the job of the export, with its rows going to `output`
    encoder = load_batch_encoder(results, job, notify) a BaseEncoder: run it like any other, with resume and rejects
    export_requests(job, "more.jsonl", notify, results=...)  only what these results do not answer

A request's `custom_id` is `piece-seq-row-hash`: where the row was read, and BLAKE2b-128 of its text with the prompt;
`-N` follows if the text had N tokens and was truncated.
Results are matched by the hash, so any order, any number of files and any chunk size give the same output.
"""

from embedcli.openai_batch.export import MAX_FILE_BYTES, MAX_REQUESTS, ExportSummary, export_requests
from embedcli.openai_batch.job_file import load_job
from embedcli.openai_batch.results import BatchResultEncoder, BatchResults, load_batch_encoder

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_REQUESTS",
    "BatchResultEncoder",
    "BatchResults",
    "ExportSummary",
    "export_requests",
    "load_batch_encoder",
    "load_job",
]

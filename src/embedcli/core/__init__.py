"""Data types, errors, the job and its options, batching and quantization; no I/O and no heavy imports."""

"""Types, errors, the job, batching and quantization: no I/O and no heavy imports."""

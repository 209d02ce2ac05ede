"""The OpenVINO engine: transformers compiled for the CPU."""

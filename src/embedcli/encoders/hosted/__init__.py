"""Hosted models behind an OpenAI-compatible embeddings endpoint."""

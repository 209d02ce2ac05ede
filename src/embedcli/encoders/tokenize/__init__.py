"""Tokenizers: texts to token ids, windows and the slow fallback."""

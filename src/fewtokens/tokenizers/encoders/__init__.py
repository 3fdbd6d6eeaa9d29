"""Encoders of tokenizers, one file each."""

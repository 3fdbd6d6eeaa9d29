"""Decoders of tokenizers, one file each."""

"""Tokenizers of papers, one file each."""

"""Video language models, one family per file."""

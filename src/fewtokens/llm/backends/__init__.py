"""Video language models, one family a file."""

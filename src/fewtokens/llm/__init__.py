"""Video language models that are asked with few tokens."""

"""Modules that encoders and decoders of tokenizers share."""

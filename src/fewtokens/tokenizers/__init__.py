"""Tokenizers: encoder | methods | quantizer > decoder, the systems of papers as presets."""

from fewtokens.tokenizers.chunks import decode_chunks, encode_chunks
from fewtokens.tokenizers.files import read_encoded, write_encoded
from fewtokens.tokenizers.load import load_tokenizer, open_tokenizer
from fewtokens.tokenizers.parts import Decoder, GridDecoder, VideoEncoder
from fewtokens.tokenizers.preset import Preset, create_tokenizer, get_preset, list_tokenizers
from fewtokens.tokenizers.tokenizer import Layout, Reconstruction, Tokenizer

__all__ = [
    "Decoder",
    "GridDecoder",
    "Layout",
    "Preset",
    "Reconstruction",
    "Tokenizer",
    "VideoEncoder",
    "create_tokenizer",
    "decode_chunks",
    "encode_chunks",
    "get_preset",
    "list_tokenizers",
    "load_tokenizer",
    "open_tokenizer",
    "read_encoded",
    "write_encoded",
]

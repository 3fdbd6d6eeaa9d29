"""Trainable methods, one file each. Found by name through `fewtokens.registry`."""

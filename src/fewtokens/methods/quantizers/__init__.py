"""Quantizers: each token gets discrete codes, and the features that these codes stand for."""

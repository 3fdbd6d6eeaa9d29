"""Selectors: which frames of a video are read, decided from their times, thumbnails and a question."""

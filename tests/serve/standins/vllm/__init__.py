"""Stand-ins of the classes of vLLM that the plugin extends: as much of each as it relies on.

The files have the paths of those in vLLM; `tests/serve/test_signatures.py` compares the two.
"""

"""The entry point of `python -m fewtokens` and `torchrun -m fewtokens`."""

from fewtokens.cli import main

main()

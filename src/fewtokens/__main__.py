"""`python -m fewtokens`, also under `torchrun -m fewtokens`."""

from fewtokens.cli import main

main()

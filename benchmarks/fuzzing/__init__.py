"""What benchmarks/fuzz.py needs: how a file is damaged (`mutate`) and what reads it (`targets`)."""

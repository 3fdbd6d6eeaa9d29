"""The verbs of `fewtokens train`, one per file; the five pre-training objectives share one."""

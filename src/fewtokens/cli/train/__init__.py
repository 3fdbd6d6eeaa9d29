"""The verbs of `fewtokens train`, one a file; the five pre-trainings share one."""

"""The verbs of `fewtokens eval`, one per file."""

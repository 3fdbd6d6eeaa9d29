"""The verbs of `fewtokens eval`, one a file."""

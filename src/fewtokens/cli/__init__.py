"""The `fewtokens` command: one verb a file, each imported when it is called."""

from fewtokens.cli.root import app, main
from fewtokens.cli.verbs import VERBS

__all__ = ["VERBS", "app", "main"]

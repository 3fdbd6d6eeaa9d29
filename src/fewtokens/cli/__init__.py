"""The `fewtokens` command: one verb per file, imported when it is called."""

from fewtokens.cli.root import app, main
from fewtokens.cli.verbs import VERBS

__all__ = ["VERBS", "app", "main"]

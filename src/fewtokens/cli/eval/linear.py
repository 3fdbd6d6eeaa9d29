"""`fewtokens eval linear`: logistic regression on frozen features."""

from __future__ import annotations

from typing import Any

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.eval.probe import MODES, ProbeOptions, run_probe
from fewtokens.cli.eval.views import LabeledOptions


@verb(
    "fewtokens eval linear --data photos/ --encoder run/model",
    'fewtokens eval linear --data photos/ --encoder facebook/dinov2-small --with "tome(keep=0.25)"',
    modes=MODES,
)
def linear(
    context: typer.Context,
    labeled: LabeledOptions,
    options: ProbeOptions,
) -> None:
    """Score a frozen encoder by the top-1 accuracy of logistic regression on its features."""

    def fit(*sets: Any) -> dict[str, Any]:
        from fewtokens.evaluation.probes import linear_probe

        accuracy, penalty = linear_probe(*sets, seed=options.seed)
        return {"top1": 100 * accuracy, "penalty": penalty}

    run_probe(context, "linear", labeled, options, fit)

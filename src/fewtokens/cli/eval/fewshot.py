"""`fewtokens eval fewshot`: least squares on a few examples per class."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.eval.probe import MODES, ProbeOptions, run_probe
from fewtokens.cli.eval.views import LabeledOptions
from fewtokens.cli.options import PROTOCOL


@verb(
    "fewtokens eval fewshot --data photos/ --encoder run/model",
    'fewtokens eval fewshot --data photos/ --encoder facebook/dinov2-small --with "tome(keep=0.25)"',
    modes=MODES,
)
def fewshot(
    context: typer.Context,
    labeled: LabeledOptions,
    options: ProbeOptions,
    shots: Annotated[
        int, typer.Option("--shots", min=1, help="Training examples per class.", rich_help_panel=PROTOCOL)
    ] = 5,
) -> None:
    """Score a frozen encoder by the top-1 accuracy of least squares on a few examples per class."""

    def fit(*sets: Any) -> dict[str, Any]:
        from fewtokens.evaluation.probes import few_shot

        return {"top1": 100 * few_shot(*sets, shots=shots)}

    run_probe(context, "fewshot", labeled, options, fit, {"shots": shots})

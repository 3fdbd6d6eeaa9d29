"""`fewtokens eval knn`: a weighted vote of nearest neighbors."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fewtokens.cli.command import verb
from fewtokens.cli.eval.probe import MODES, ProbeOptions, run_probe
from fewtokens.cli.eval.views import LabeledOptions
from fewtokens.cli.options import PROTOCOL


@verb(
    "fewtokens eval knn --data photos/ --encoder run/model",
    'fewtokens eval knn --data photos/ --encoder facebook/dinov2-small --k 10 --with "tome(keep=0.25)"',
    modes=MODES,
)
def knn(
    context: typer.Context,
    labeled: LabeledOptions,
    options: ProbeOptions,
    k: Annotated[int, typer.Option("--k", min=1, help="Number of neighbors.", rich_help_panel=PROTOCOL)] = 20,
) -> None:
    """Score a frozen encoder by the top-1 accuracy of a weighted vote of nearest neighbors."""

    def fit(*sets: Any) -> dict[str, Any]:
        from fewtokens.evaluation.probes import nearest_neighbors

        return {"top1": 100 * nearest_neighbors(*sets, k=k)}

    run_probe(context, "knn", labeled, options, fit, {"k": k})

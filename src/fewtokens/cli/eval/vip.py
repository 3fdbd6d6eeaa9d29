"""`fewtokens eval vip`: scores propagation of human parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewtokens.cli.command import verb
from fewtokens.cli.errors import check_exists
from fewtokens.cli.eval.dense_run import MODES, DataOption, DenseOptions, ListOption, ProtocolOption, Task, run_task
from fewtokens.core.checks import check_layout

if TYPE_CHECKING:
    from fewtokens.data.dense_sets import SequenceFiles
    from fewtokens.evaluation.dense import SequenceResult


@verb(
    "fewtokens eval vip --data VIP/ --encoder run/model --out scores/",
    "fewtokens eval vip --data VIP/ --encoder facebook/dinov2-small --set 'size=long 560' --set context=4",
    modes=MODES,
)
def vip(
    data: DataOption,
    options: DenseOptions = DenseOptions(batch=8),
    protocol: ProtocolOption = "A",
    listing: ListOption = None,
) -> None:
    """Score a frozen encoder on VIP: propagate masks of human parts from the first frame, measure mean IoU.

    There are 20 classes, including the background. The given first frame is included.
    """
    check_layout(data, "VIP")
    check_exists(listing)
    from fewtokens.data.dense_sets import vip_videos
    from fewtokens.evaluation import dense

    sequences, source = vip_videos(data, listing)

    def evaluate(files: SequenceFiles, encode: Any, settings: Any, report: Any) -> SequenceResult:
        return dense.vip(files, encode, settings, progress=report)

    task = Task("vip", sequences, source, evaluate, lambda rows: (*dense.vip_summary(rows), []), "mean_iou", {})
    run_task(task, data, protocol, options)

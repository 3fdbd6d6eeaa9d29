"""`fewtokens eval vip`: parts of people followed through videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewtokens.cli.command import verb
from fewtokens.cli.errors import check_exists
from fewtokens.cli.eval.dense_run import MODES, DataOption, DenseOptions, ListOption, ProtocolOption, Task, run_task

if TYPE_CHECKING:
    from fewtokens.data.dense_sets import SequenceFiles
    from fewtokens.evaluation.dense import Judged


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
    """Mean IoU of 20 classes on VIP: parts of people in the first frame, carried through each video by the features.

    The background counts as a class, and so does the first frame, which is given.
    """
    check_exists(data, what="VIP folder")
    check_exists(listing)
    from fewtokens.data.dense_sets import vip_videos
    from fewtokens.evaluation import dense

    sequences, source = vip_videos(data, listing)

    def judge(files: SequenceFiles, encode: Any, how: Any, report: Any) -> Judged:
        return dense.vip(files, encode, how, progress=report)

    task = Task("vip", sequences, source, judge, lambda rows: (*dense.vip_summary(rows), []), "mean_iou", {})
    run_task(task, data, protocol, options)

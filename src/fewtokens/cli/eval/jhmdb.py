"""`fewtokens eval jhmdb`: human joints followed through videos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewtokens.cli.command import verb
from fewtokens.cli.errors import check_exists
from fewtokens.cli.eval.dense_run import MODES, DataOption, DenseOptions, ListOption, ProtocolOption, Task, run_task

if TYPE_CHECKING:
    from fewtokens.data.dense_sets import SequenceFiles
    from fewtokens.evaluation.dense import Judged


@verb(
    "fewtokens eval jhmdb --data jhmdb/ --encoder run/model --list testlist.txt",
    "fewtokens eval jhmdb --data jhmdb/ --encoder facebook/dinov2-small --set context=7 --out scores/",
    modes=MODES,
)
def jhmdb(
    data: DataOption,
    options: DenseOptions = DenseOptions(batch=16),
    protocol: ProtocolOption = "A",
    listing: ListOption = None,
) -> None:
    """PCK@0.1 and PCK@0.2 on JHMDB: 15 joints of the first frame, carried through each clip by the features.

    Found within that share of 0.6 times the diagonal of the box of the joints; the mean of the joints' own percentages.
    """
    check_exists(data, what="JHMDB folder")
    check_exists(listing)
    from fewtokens.data.dense_sets import jhmdb_clips
    from fewtokens.evaluation import dense

    sequences, source = jhmdb_clips(data, listing)

    def judge(files: SequenceFiles, encode: Any, how: Any, report: Any) -> Judged:
        return dense.jhmdb(files, encode, how, progress=report)

    task = Task("jhmdb", sequences, source, judge, lambda rows: (*dense.jhmdb_summary(rows), []), "pck_0_1", {})
    run_task(task, data, protocol, options)

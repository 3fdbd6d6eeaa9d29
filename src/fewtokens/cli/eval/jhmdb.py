"""`fewtokens eval jhmdb`: scores propagation of human joints."""

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
    """Score a frozen encoder on JHMDB: propagate 15 joints of the first frame, measure PCK@0.1 and PCK@0.2.

    A joint counts as correct within that fraction of 0.6 times the diagonal of the joints' bounding box. PCK is the
    mean of the percentages per joint.
    """
    check_layout(data, "JHMDB")
    check_exists(listing)
    from fewtokens.data.dense_sets import jhmdb_clips
    from fewtokens.evaluation import dense

    sequences, source = jhmdb_clips(data, listing)

    def evaluate(files: SequenceFiles, encode: Any, settings: Any, report: Any) -> SequenceResult:
        return dense.jhmdb(files, encode, settings, progress=report)

    task = Task("jhmdb", sequences, source, evaluate, lambda rows: (*dense.jhmdb_summary(rows), []), "pck_0_1", {})
    run_task(task, data, protocol, options)

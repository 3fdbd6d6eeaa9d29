"""Peak memory of whole runs of `fewtokens bench` and `fewtokens ask` over a 10-minute 1280x720 video.

    python benchmarks/run_memory.py

The video is that of read_video.py (four minutes to generate, kept in the system's temporary folder). `bench` runs all
methods at one budget with the encoder patches; `ask` runs tiny random Qwen2-VL and LLaVA-OneVision models as the tests
save them, two questions each. Each command is a separate process; its peak resident memory is compared with that of
a process that imports the package and loads the model. About ten minutes on 2 cores. Expected: at most 2 GiB beyond the
loaded model.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import write
from read_video import FOLDER, make_clip

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.llm.saved import save


def peak(command: list[str], folder: Path) -> int:
    """Peak resident memory of a process, in MiB."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return usage.ru_maxrss // 1024


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    video = str(make_clip(FOLDER / "600s.mp4", 600))
    python = [sys.executable, "-m", "fewtokens"]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [
            (
                "bench FILE --keep 0.1 --repeats 1",
                [*python, "bench", video, "--keep", "0.1", "--repeats", "1", "--out", "bench"],
                "import fewtokens; fewtokens.load_encoder('patches')",
            )
        ]
        for family in ("qwen2_vl", "llava_onevision"):
            save(family, folder / family)
            words = ["what happens", "how many people are there", "--model", family, "--max-new-tokens", "8"]
            loading = f"import fewtokens; fewtokens.llm.load({family!r})"
            runs.append((f"ask FILE, {family}", [*python, "ask", video, *words], loading))
            if family == "qwen2_vl":
                command = [*python, "ask", video, *words, "--fps", "1"]
                runs.append((f"ask FILE --fps 1, {family}: 600 frames of full size", command, loading))
        for name, command, loading in runs:
            loaded = peak([sys.executable, "-c", loading], folder)
            total = peak(command, folder)
            rows.append({"run": name, "loaded, MiB": loaded, "peak, MiB": total, "beyond, MiB": total - loaded})
            print(rows[-1], flush=True)
    write(
        "run_memory",
        "Peak memory of runs over a 10-minute 1280x720 video",
        "python benchmarks/run_memory.py",
        rows,
    )


if __name__ == "__main__":
    main()

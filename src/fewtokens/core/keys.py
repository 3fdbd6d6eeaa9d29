"""The keys of result files and --json output, their headings in tables, and the keys of earlier versions.

docs/formats.md explains every key.
"""

from __future__ import annotations

from typing import Any

# Headings that differ from the key with spaces.
HEADINGS = {
    "relative_error": "rel. error",
    "psnr_db": "PSNR dB", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "rfid": "rFID", "rfvd": "rFVD",
    "frechet_random3d": "Fréchet random3d",
    "j_and_f": "J&F", "j": "J", "f": "F", "j_and_f_880": "J&F 880", "j_880": "J 880", "f_880": "F 880",
    "j_and_f_mean": "J&F-Mean", "j_mean": "J-Mean", "j_recall": "J-Recall", "j_decay": "J-Decay",
    "f_mean": "F-Mean", "f_recall": "F-Recall", "f_decay": "F-Decay",
    "method_ms_spread": "method ± ms", "total_ms_spread": "total ± ms",
    "encoder_gflops": "encoder GFLOPs", "prefill_gflops": "prefill GFLOPs", "peak_mib": "peak MiB",
    "neighbor_agreement": "nearest", "rank_correlation": "ranks",
    "pck_0_1": "PCK@0.1", "pck_0_2": "PCK@0.2", "joints_unseen": "joints not seen",
    "mean_iou": "mIoU", "map": "mAP",
    "gflops_paper": "GFLOPs (paper)", "gflops_paper_video": "GFLOPs (paper_video)", "gmacs": "GMACs",
    "activations_mib": "activations, MiB", "uncounted": "not counted",
}  # fmt: skip
_CHANGE = "delta_"

# Keys of earlier versions: the current headings, and these.
_EARLIER = {heading: key for key, heading in HEADINGS.items()} | {
    "J recall": "j_recall", "J decay": "j_decay", "F recall": "f_recall", "F decay": "f_decay",
    "rare cosine": "rare_cosine", "method ms": "method_ms", "encoder ms": "encoder_ms", "total ms": "total_ms",
    "joints counted": "joints_counted", "found 0.1": "found_0_1", "found 0.2": "found_0_2",
    "at step": "best_step", "share": "retention", "davis size": "davis_size", "with": "spec", "set": "dataset",
    "source": "assignment",
}  # fmt: skip


def heading(key: str) -> str:
    """Returns the table heading of a key, such as "PSNR dB" for "psnr_db" or "Δ cosine" for "delta_cosine"."""
    if key.startswith(_CHANGE):
        return f"Δ {heading(key.removeprefix(_CHANGE))}"
    return HEADINGS.get(key, key.replace("_", " "))


def with_headings(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a table row with its keys replaced by their headings."""
    return {heading(key): value for key, value in row.items()}


def delta_key(key: str) -> str:
    """Returns the key of the difference of a value between two runs."""
    return f"{_CHANGE}{key}"


def current_keys(value: Any) -> Any:
    """Renames the keys of earlier versions in plain values read from a result file."""
    if isinstance(value, dict):
        return {_EARLIER.get(key, key): current_keys(entry) for key, entry in value.items()}
    return [current_keys(entry) for entry in value] if isinstance(value, list) else value

"""`fewtokens decode`: decodes the files of `fewtokens encode`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.batch import Batch
from fewtokens.cli.command import verb
from fewtokens.cli.console import log
from fewtokens.cli.errors import check_exists, check_folder
from fewtokens.cli.options import (
    ENCODER,
    INPUT,
    OUTPUT,
    Check,
    DeviceOption,
    JsonOption,
    check_tokenizer,
    find_tokenizer,
)
from fewtokens.cli.progress import progress
from fewtokens.cli.resume import Inputs, distinct_names, unique_paths
from fewtokens.cli.tokenizer_files import StoredTokenizers
from fewtokens.cli.video_parts import VideoParts

if TYPE_CHECKING:
    from torch import Tensor

    from fewtokens.tokenizers.files import Header

_VIDEOS, _IMAGES = (".mp4", ".mov", ".mkv", ".webm", ".gif"), (".png", ".jpg")
# Frames per second of a video whose rate is not known.
_RATE = 25.0


@verb(
    "fewtokens decode clip.safetensors --out clip.mp4",
    "fewtokens decode codes/*.safetensors --tokenizer run/tokenizer --out decoded/",
    "fewtokens decode clip.safetensors --compare clip.mp4 --out side_by_side.mp4",
)
def decode(
    encoded: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files of `fewtokens encode`.")],
    target: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Output video or image (one file), or output folder: .mp4, and .png for single frames.",
            rich_help_panel=OUTPUT,
        ),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Folder or hub id of the tokenizer, if it has moved. Default: that in the header of each file.",
            rich_help_panel=ENCODER,
        ),
        Check(check_tokenizer, find_tokenizer),
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--compare",
            metavar="VIDEO",
            help="The encoded video: write original, reconstruction and error side by side; a .png has six frames.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Decode encoded videos, in their size and at their frames per second; single frames become images.

    The tokenizer is that of the header of each file: a folder, or a preset with the random parameters of a seed. Files
    of other parameters are an error.

    If one of several files cannot be decoded, the others are still processed; it is listed in failed.jsonl in the
    output folder, and the exit code is 1.
    """
    files = unique_paths(encoded)
    single = target.suffix.lower() in (*_VIDEOS, *_IMAGES) and not target.is_dir()
    if single and len(files) > 1:
        raise ValueError(f"{len(files)} files cannot be decoded into one file {target}; give a folder as --out")
    if not single:
        check_folder(target, "a video, an image or a folder")
    if len(files) == 1:
        check_exists(files[0])
    if original is not None:
        check_exists(original)
        if target.suffix.lower() not in (*_VIDEOS, ".png") or not single:
            raise ValueError(f"--compare writes one .png or video ({', '.join(_VIDEOS)}), got --out {target}")
    protected = Inputs(*files, original)
    open_once = StoredTokenizers(tokenizer, device)
    batch = Batch(len(files), "file", target)
    with progress("frames" if len(files) == 1 else "files", None if len(files) == 1 else len(files)) as advance:
        for number, (file, name) in enumerate(zip(files, distinct_names(files), strict=True)):
            try:
                output = target if single else target / f"{name}{_suffix(file)}"
                protected.check_output(output)
                row = _decode_file(file, output, original, open_once, advance if len(files) == 1 else None)
            except (ValueError, OSError) as error:
                batch.fail(file, error)
            else:
                batch.done.append(row)
                if not as_json:
                    quality = f"PSNR {row['psnr_db']:.2f} dB, " if "psnr_db" in row else ""
                    log.print(
                        f"{escape(row['out'])}: {row['frames']} frames of {row['height']}x{row['width']}, "
                        f"{quality}{row['seconds']:.1f} s",
                        highlight=False,
                        soft_wrap=True,
                    )
            if len(files) > 1:
                advance(number + 1)
    batch.finish(as_json)


def _suffix(file: Path) -> str:
    """The suffix of the decoded file: that of an image for a single frame."""
    from fewtokens.tokenizers.files import read_header

    return ".png" if read_header(file)["size"][0] == 1 else ".mp4"


def _decode_file(
    file: Path, out: Path, original: Path | None, open_once: StoredTokenizers, advance: Callable[..., None] | None
) -> dict[str, Any]:
    """Decodes one file, and returns its entry in the report.

    Args:
        file: the encoded video.
        out: output file.
        original: the video to draw next to the decoded one, or None.
        open_once: returns the tokenizer.
        advance: receives the number of decoded frames and their total.
    """
    from fewtokens.tokenizers.chunks import decode_chunks
    from fewtokens.tokenizers.files import read_encoded, read_header
    from fewtokens.video import write

    start = time.perf_counter()
    header = read_header(file)
    length, height, width = header["size"]
    if out.suffix.lower() in _IMAGES and length > 1 and original is None:
        raise ValueError(f"{file}: has {length} frames; --out must be a video ({', '.join(_VIDEOS)})")
    tokenizer = open_once(file, header)
    tokens = read_encoded(file)

    def parts() -> Iterator[Tensor]:
        count = 0
        for part in decode_chunks(tokenizer, tokens):
            count += len(part)
            if advance is not None:
                advance(count, length)
            yield part

    rate = header["fps"] or _RATE
    scores: dict[str, Any] = {}
    if original is not None:
        from fewtokens.show.side_by_side import write_side_by_side

        per_pixel = header["bits"] / (length * height * width)
        caption = f"{per_pixel:.4g} bits per pixel by {tokenizer.title or tokenizer.spec}."
        pairs = _pairs(original, file, header, parts())
        scores["psnr_db"] = write_side_by_side(out, pairs, length=length, fps=rate, caption=caption)
        scores["bits_per_pixel"] = per_pixel
    elif out.suffix.lower() in _IMAGES:
        _write_image(out, next(parts())[0])
    else:
        write(out, parts(), rate)
    return {
        "file": str(file),
        "out": str(out),
        "frames": length,
        "height": height,
        "width": width,
        "fps": None if length == 1 else rate,
        **scores,
        "seconds": round(time.perf_counter() - start, 3),
    }


def _pairs(video: Path, file: Path, header: Header, decoded: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields each frame of a video, read with the settings of the encoded file, with the decoded one; both uint8.

    Raises:
        ValueError: the video has another size or number of frames than the file.
    """
    length, height, width = header["size"]
    reading = header["meta"].get("reading")
    frames = chain.from_iterable(part.frames for part in VideoParts(video, reading or {}))
    rebuilt = chain.from_iterable((part * 255).round().byte().cpu() for part in decoded)
    for number, frame in enumerate(frames):
        if frame.shape[-2:] != (height, width):
            size = f"{frame.shape[-2]}x{frame.shape[-1]}"
            raise ValueError(f"{video}: frames of {size}, but {file} was encoded from frames of {height}x{width}")
        if number == length:
            raise ValueError(f"{video}: has more than the {length} frames that {file} was encoded from")
        yield frame, next(rebuilt)
    if number + 1 < length:
        raise ValueError(f"{video}: has {number + 1} frames, but {file} was encoded from {length}")


def _write_image(path: Path, image: Tensor) -> None:
    from PIL import Image

    from fewtokens.core.files import atomic_file

    pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    with atomic_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG" if path.suffix.lower() == ".png" else "JPEG")

"""`fewtokens eval reconstruction`: what tokenizers keep of videos per bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fewtokens.cli.command import Mode, verb
from fewtokens.cli.console import log, out
from fewtokens.cli.errors import check_exists
from fewtokens.cli.options import INPUT, OUTPUT, PROTOCOL, Check, DeviceOption, JsonOption, check_model, find_model
from fewtokens.cli.pipelines import comma_separated
from fewtokens.cli.progress import progress
from fewtokens.cli.tables import print_json, table

_CODECS = ("x264", "x265", "jpeg")
# Columns of the measures by networks are shown if they were measured.
_COLUMNS = ("bits_per_pixel", "psnr", "ssim", "temporal_error", "flicker", "usage", "encode_fps", "decode_fps")
_NETWORKS = ("lpips", "rfid", "rfvd", "frechet_random3d")


def _check_codecs(codecs: str) -> None:
    if unknown := sorted(set(comma_separated(codecs)) - set(_CODECS)):
        raise ValueError(f"--codecs must be of {', '.join(_CODECS)}, got {', '.join(unknown)}")


def _each(check: Callable[[str], object]) -> Callable[[str], None]:
    """Returns the check of comma-separated names."""

    def check_names(names: str) -> None:
        for name in comma_separated(names):
            check(name)

    return check_names


@verb(
    "fewtokens eval reconstruction videos/ --tokenizers run/tokenizer",
    "fewtokens eval reconstruction clip.mp4 other.mp4 --tokenizers a/tokenizer,b/tokenizer --frames 9 --size 64 "
    "--out compare",
    "fewtokens eval reconstruction photos/ --images --tokenizers run/tokenizer --size 64",
    modes=(
        Mode("images", lambda values: values["images"], ("frames", "gap", "clips", "rfvd"), "have no effect on images"),
        Mode(
            "no distance",
            lambda values: values["rfid"] is None and values["rfvd"] is None and not values["random3d"],
            ("shrinkage",), "require --rfid, --rfvd or --random3d",
        ),
    ),
)  # fmt: skip
def reconstruction(
    videos: Annotated[
        list[Path], typer.Argument(help="Videos, folders of videos, .npy frames, tars or lists; or images.")
    ],
    tokenizers: Annotated[
        str,
        typer.Option("--tokenizers", help="Comma-separated folders of trained tokenizers.", rich_help_panel=PROTOCOL),
        Check(_each(check_model), _each(find_model)),
    ],
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames of a clip.", rich_help_panel=INPUT)] = 17,
    size: Annotated[int, typer.Option("--size", min=1, help="Side of a clip, in pixels.", rich_help_panel=INPUT)] = 128,
    gap: Annotated[
        int, typer.Option("--gap", min=1, help="Distance of the frames of a clip, in frames.", rich_help_panel=INPUT)
    ] = 1,
    clips: Annotated[
        int, typer.Option("--clips", min=1, help="Clips of each video, evenly spaced.", rich_help_panel=INPUT)
    ] = 1,
    images: Annotated[
        bool,
        typer.Option(
            "--images", help="Each image, alone or in a folder, is one clip of one frame.", rich_help_panel=INPUT
        ),
    ] = False,
    codecs: Annotated[
        str | None,
        typer.Option(
            "--codecs",
            help='Codecs to compare with at the same bits: x264, x265, jpeg; "" for none. Default: x264,x265; jpeg '
            "for images.",
            rich_help_panel=PROTOCOL,
        ),
        Check(_check_codecs),
    ] = None,
    lpips: Annotated[
        str | None,
        typer.Option(
            "--lpips",
            metavar="BACKBONE,HEADS",
            help="Measure LPIPS: the weights of AlexNet of torchvision, and alex.pth of the package lpips.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    rfid: Annotated[
        Path | None,
        typer.Option(
            "--rfid",
            metavar="INCEPTION",
            help="Measure rFID: the weights of Inception, of torch-fidelity or as TorchScript.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    rfvd: Annotated[
        Path | None,
        typer.Option(
            "--rfvd",
            metavar="I3D",
            help="Measure rFVD: i3d_torchscript.pt of StyleGAN-V.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    random3d: Annotated[
        bool,
        typer.Option(
            "--random3d",
            help="Measure a Fréchet distance of a random network, comparable only with itself.",
            rich_help_panel=PROTOCOL,
        ),
    ] = False,
    shrinkage: Annotated[
        float | None,
        typer.Option(
            "--shrinkage",
            min=0.0,
            max=1.0,
            help="Shrinkage of the covariances of Fréchet distances, for fewer clips than dimensions.",
            rich_help_panel=PROTOCOL,
        ),
    ] = None,
    device: DeviceOption = "auto",
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for results.json, rate_distortion.png and clips.png.", rich_help_panel=OUTPUT
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score what tokenizers keep of videos: PSNR, SSIM and error over time, at the bits of their codes.

    Each tokenizer is compared with x264, x265 and area pooling at the same bits, and with the mean frame. The bits of
    codecs are those of the raw stream without headers, which the results list separately.

    With --images, the codec is JPEG, and PSNR is that of each image. LPIPS, rFID and rFVD need weights, which are not
    part of this package; the results record how each distance was measured.
    """
    names = comma_separated(tokenizers)
    frames = 1 if images else frames
    if codecs is None:
        codecs = "jpeg" if images else "x264,x265"
    chosen = comma_separated(codecs) if codecs else []
    if not names:
        raise ValueError("--tokenizers must name at least one folder of a tokenizer")
    for video in videos:
        check_exists(video)
    from fewtokens.core.files import write_text
    from fewtokens.data.footage import find_footage, find_images
    from fewtokens.evaluation.reconstruction.compare import ClipProtocol, Measures, compare, read_clips
    from fewtokens.evaluation.reconstruction.lpips import Lpips
    from fewtokens.evaluation.reconstruction.weights import check_file
    from fewtokens.tokenizers.load import load_tokenizer

    network = None
    if lpips is not None:
        files = comma_separated(lpips)
        if len(files) != 2:
            raise ValueError(f"--lpips must be two files, BACKBONE,HEADS, got {lpips!r}")
        network = Lpips.load(files[0], files[1])
    for name, path in (("rfid", rfid), ("rfvd", rfvd)):
        if path is not None:
            check_file(name, path, f"the file of weights that --{name} names")
    split = ", ".join(map(str, videos))
    measures = Measures(lpips=network, rfid=rfid, rfvd=rfvd, random3d=random3d, shrinkage=shrinkage, split=split)
    loaded = [(_label(name, names), load_tokenizer(name, device=device)) for name in names]
    protocol = ClipProtocol(frames, size, gap, clips)
    find = find_images if images else find_footage
    read, broken = read_clips([item for video in videos for item in find(video).items], protocol)
    for line in broken:
        log.print(f"[yellow]skipped[/yellow] {escape(line)}", soft_wrap=True)
    if not read:
        if images:
            raise ValueError("no image can be read")
        raise ValueError(f"no video has a clip of {frames} frames with gap {gap}; use a smaller --frames")
    with progress("reconstruction", len(read) * len(loaded)) as advance:
        done = 0

        def step(index: int, total: int, name: str) -> None:
            nonlocal done
            done += 1
            advance(done, len(read) * len(loaded), Path(name).name)

        curves = folder is not None
        result = compare(loaded, read, protocol, codecs=chosen, curves=curves, measures=measures, progress=step)
    result["skipped"] = broken
    if folder is not None:
        from fewtokens.cli.tables import to_json

        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "results.json", to_json(result))
        _draw(folder, loaded, read, result)
    if as_json:
        print_json(result)
        return
    columns = [name for name in (*_COLUMNS, *_NETWORKS) if name in result["rows"][0]]
    rows = [
        {"name": row["name"], "bits of": row["at"], **{name: row.get(name) for name in columns}}
        for row in result["rows"]
        if "=" not in str(row["at"])
    ]
    what = f"{len(read)} images of {size} x {size}" if images else f"{len(read)} clips of {frames} x {size} x {size}"
    out.print(table(what, rows))
    if any(row.get("above_target") for row in result["rows"] if row["kind"] == "codec"):
        out.print("[dim]Some clips are above the bits of the tokenizer: a codec does not reach so low a rate.[/dim]")
    if folder is not None:
        out.print(f"[bold]Results[/bold]  {escape(str(folder))}", highlight=False)


def _label(name: str, names: list[str]) -> str:
    """The shortest part of a path that tells it from the others: run for run/tokenizer."""
    path = Path(name)
    short = path.parent.name if path.name == "tokenizer" and path.parent.name else path.name
    labels = [Path(n).parent.name if Path(n).name == "tokenizer" else Path(n).name for n in names]
    return short if labels.count(short) == 1 else name


def _draw(folder: Path, loaded: Any, clips: Any, result: dict[str, Any]) -> None:
    import torch

    from fewtokens.evaluation.reconstruction.rate_distortion import RatePoint
    from fewtokens.show.rate_distortion import draw_rate_distortion
    from fewtokens.show.strips import draw_strips

    points = [
        RatePoint(row["name"], row["bits_per_pixel"], {"psnr": row["psnr"]})
        for row in result["rows"]
        if row["kind"] == "tokenizer" or row["name"] in ("area_pooling", "mean_frame") or "=" in str(row["at"])
    ]
    settings = result["protocol"]
    caption = (
        f"{settings['num_clips']} clips of {settings['frames']} x {settings['size']} x {settings['size']}; bits of "
        "codes by formula, of codecs without headers. Area pooling has the bits of each tokenizer."
    )
    draw_rate_distortion(points, "psnr", folder / "rate_distortion.png", caption=caption)
    shown = clips[:8]
    middle = len(shown[0].frames) // 2
    rows = [("original", torch.stack([clip.frames[middle] for clip in shown]))]
    for name, tokenizer in loaded:
        decoded = [tokenizer.decode(tokenizer.encode(clip.frames))[0, middle].cpu() for clip in shown]
        rows.append((name[-18:], (torch.stack(decoded) * 255).round().byte()))
    draw_strips(rows, folder / "clips.png", title="Reconstructions", caption="The middle frame of the first clips.")

"""Every file reader of the package, each with a small valid example to damage.

A target writes its example to a folder, of which one file is damaged, and reads that folder. The results are hashed, so
that readings can be compared. Allowed are a result and the documented errors, ValueError and OSError.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewtokens import Pipeline, load_encoder
from fewtokens.core import registry, streaming
from fewtokens.core.tokens import Tokens
from fewtokens.data import demonstrations, dense_sets, footage, masks, qa_sets
from fewtokens.data.clips import ClipData, View
from fewtokens.data.listing import read_listing
from fewtokens.data.transforms import Transform
from fewtokens.video import read, stream, synthetic, write
from fuzzing import mutate


@dataclasses.dataclass(frozen=True)
class Target:
    """A file format and its reader.

    Attributes:
        name: name of the target.
        count: mutants in a full campaign.
        make: writes the valid example to an empty folder.
        read: reads the folder; the index of the mutant may select how. Returns simple values, tensors, arrays,
            dataclasses, or containers of these.
        damage: a mutation for each pattern of file names that may be damaged.
        readings: readings of each mutant; all results must be equal.
    """

    name: str
    count: int
    make: Callable[[Path], object]
    read: Callable[[Path, int], object]
    damage: dict[str, mutate.Mutate]
    readings: int = 2


def _frames(count: int = 20, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return synthetic("shapes", frames=count, size=size).frames.permute(0, 2, 3, 1).contiguous().numpy()


def _encode(path: Path, codec: str, pixels: str = "yuv420p", form: str | None = None) -> None:
    import av

    with av.open(str(path), "w", format=form) as out:
        track = out.add_stream(codec, rate=10)
        track.width, track.height, track.pix_fmt = 64, 48, pixels
        track.codec_context.gop_size = 6
        for image in _frames():
            out.mux(track.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(track.encode())


def _pictures(path: Path, **options: Any) -> None:
    images = [Image.fromarray(image) for image in _frames(6, (24, 32))]
    images[0].save(path, **({"save_all": True, "append_images": images[1:], "duration": 100} if options else {}))


def _read_media(folder: Path, index: int) -> object:
    (path,) = folder.iterdir()
    truncated = index % 3 == 0
    if index % 2:
        chunks = stream(path, chunk=8, size=32, fps=(None, 5.0)[index % 5 == 0], allow_truncated=truncated)
        return [(chunk.frames, chunk.times) for chunk in chunks]
    video = read(path, frames=(4, None)[index % 4 == 0], size=32, allow_truncated=truncated)
    return [video.frames, video.times, video.duration, video.fps]


def _media(name: str, make: Callable[[Path], object], count: int = 280) -> Target:
    return Target(
        f"media {name}",
        count,
        lambda folder: make(folder / f"a.{name}"),
        _read_media,
        {"*": mutate.change_bytes},
        readings=3,
    )


def _make_tokens(folder: Path) -> None:
    video = synthetic("static", frames=4, size=(32, 32))
    pipeline = Pipeline("tome(keep=0.3)", load_encoder("patches"))
    pipeline(video.frames, video.times).save(folder / "a.safetensors", source={"path": "a.mp4", "bytes": 3})


def _read_tokens(folder: Path, index: int) -> object:
    tokens = Tokens.load(folder / "a.safetensors")
    return [tokens.features, tokens.positions, tokens.sizes, tokens.assignment, tokens.unmerge(), tokens.meta]


def _make_pipeline(folder: Path) -> None:
    Pipeline("tokenlearner('4/frame', dim=768) | tome(keep=0.5)", load_encoder("patches")).save_pretrained(folder)


def _read_pipeline(folder: Path, index: int) -> object:
    pipeline = Pipeline.from_pretrained(folder)
    return [pipeline.spec, *pipeline.methods.state_dict().values()]


def _make_stream(folder: Path) -> None:
    video = synthetic("static", frames=8, size=(32, 32))
    run = streaming.Streaming(Pipeline("dtd(0.5)", load_encoder("patches")))
    names = []
    for start in (0, 4):
        tokens = run(video.frames[start : start + 4], video.times[start : start + 4])
        names.append(f"{start:06}.safetensors")
        tokens.save(folder / names[-1], spec=run.pipeline.spec)
    streaming.finish(folder, names, run.pipeline.spec, {"source": {"path": "a.mp4"}})


def _read_stream(folder: Path, index: int) -> object:
    tokens = streaming.load(folder)
    return [tokens.features, tokens.assignment, tokens.meta]


_SPECS = [
    "tome(keep=0.25)", "rlt(tau=0.1) | kmeans(keep=32)", "tome(0.5) | scissor(tau=0.9)", "dycoke(0.7)",
    "visionzip(keep=16, contextual=0.2)", "tokenlearner('8/frame', version='1.1')",
    "holitom(keep=0.1) | mean_pool(keep=0.5)",
    "sttm(tau=0.8) | random(keep=8, seed=3)",
    "token_dynamics(criterion='silhouette', between=(12, 32))", "evs(keep=0.3)",
    "perceiver(keep=16, num_layers=2)", "downsample(keep='4/frame')", "fastvid(keep=0.25)", "prunevid(tau=0.8)",
]  # fmt: skip


def _make_spec(folder: Path) -> None:
    (folder / "spec.txt").write_text("\n".join(_SPECS), encoding="utf-8")


def _read_spec(folder: Path, index: int) -> object:
    text = (folder / "spec.txt").read_bytes().decode("utf-8", "replace")
    lines = text.split("\n")
    spec = lines[index % len(lines)] if index % 8 else " | ".join(lines)
    methods = registry.build(spec, dim=8)
    return [method.spec for method in methods if sum(p.numel() for p in method.parameters()) < 1e8]


def _make_images(folder: Path) -> None:
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(folder / f"{number}.png")


_LISTS = {
    "a.csv": "path,label,start,end\n0.png,cat,0,1\n1.png,cat;dog,0,1.5\n2.png,dog,,\n\"3.png\",dog,0,1\n",
    "a.jsonl": "".join(
        json.dumps({"path": f"{n}.png", "label": label}) + "\n" for n, label in enumerate(["cat", "dog", ["a", "b"]])
    ),
    "a.txt": "# path frames label\n0.png 9 0\n1.png 12 1\n2.png,30,0\n\"3.png\" 7 1\n",
    "kinetics.csv": "label,youtube_id,time_start,time_end,split\nriding a bike,abc,10,20,train\nbowling,def,0,10,val\n",
    "charades.csv": "id,subject,actions\n0,x,c092 11.90 21.20;c147 0.00 12.60\n1,y,c001 0 1\n2,z,\n",
    "a.json": json.dumps({"0.png": "cat", "1.png": "dog", "2.png": "none"}),
}  # fmt: skip


def _make_list(name: str, folder: Path) -> None:
    _make_images(folder)
    (folder / name).write_text(_LISTS[name], encoding="utf-8")
    for video in ("0.mp4", "1.mp4", "2.mp4", "abc_000010_000020.mp4", "def_000000_000010.mp4"):
        (folder / video).write_bytes(b"")


def _read_list(name: str, folder: Path, index: int) -> object:
    if index % 2:
        return footage.find_footage(folder / name)
    return read_listing(folder / name)


def _list(name: str, damage: mutate.Mutate) -> Target:
    make, read_it = functools.partial(_make_list, name), functools.partial(_read_list, name)
    return Target(f"list {name}", 180, make, read_it, {name: damage})


def _questions(name: str) -> dict[str, str]:
    """A tiny annotation file of each public question set: its path and text."""
    choices = ["one", "two", "three", "four", "five"]
    if name == "nextqa":
        head = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
        return {"test.csv": head + "v1,10,4,4,what is it,2,1,CW," + ",".join(choices) + "\n"}
    if name == "activitynetqa":
        questions = [{"video_name": "v1", "question": "what", "question_id": "v1_1"}]
        return {
            "test_q.json": json.dumps(questions),
            "test_a.json": json.dumps([{"answer": "yes", "type": 3, "question_id": "v1_1"}]),
        }
    if name == "longvideobench":
        row = {
            "id": "a", "video_path": "v1.mp4", "question": "what", "candidates": choices, "correct_choice": 1,
            "question_category": "S2E", "duration_group": 60, "duration": 30.5, "subtitle_path": "v1.json",
            "starting_timestamp_for_subtitles": 0,
        }  # fmt: skip
        return {"lvb_val.json": json.dumps([row])}
    if name == "videomme":
        row = {
            "videoID": "v1", "question_id": "1-1", "question": "what", "options": [f"{c}. x" for c in "ABCD"],
            "answer": "B", "task_type": "T", "duration": "short",
        }  # fmt: skip
        return {"test.json": json.dumps([row])}
    row = {"video": "v1.mp4", "question": "what", "candidates": choices, "answer": "two", "start": 0, "end": 1.5}
    return {"json/action_sequence.json": json.dumps([row])}


def _make_questions(name: str, folder: Path) -> None:
    for path, text in _questions(name).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    for path in ("videos/v1.mp4", "video/star/Charades_v1_480/v1.mp4"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    if name == "longvideobench":
        (folder / "subtitles").mkdir()
        lines = [{"start": "00:00:01.000", "end": "00:00:02.000", "line": "hello"}, {"timestamp": [1, 2], "text": "x"}]
        (folder / "subtitles" / "v1.json").write_text(json.dumps(lines), encoding="utf-8")
    if name == "videomme":
        (folder / "subtitle").mkdir()
        (folder / "subtitle" / "v1.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n\n", encoding="utf-8")


def _read_questions(name: str, folder: Path, index: int) -> object:
    questions = qa_sets.load_questions(name, folder)
    return [
        (question, qa_sets.format_prompt(question, name), qa_sets.read_subtitles(question)) for question in questions
    ]


def _question_set(name: str) -> Target:
    damage = {"*.json": mutate.change_json, "*.csv": mutate.change_text, "*.srt": mutate.change_text}
    make, read_it = functools.partial(_make_questions, name), functools.partial(_read_questions, name)
    return Target(f"questions {name}", 100, make, read_it, damage)


def _make_conversations(folder: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": "a dog"}]
    rows = [{"id": n, "video": "v1.mp4", "conversations": turns} for n in range(2)]
    (folder / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "v1.mp4").write_bytes(b"")


def _make_tar(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as inside, tarfile.open(folder / "a.tar", "w") as tar:
        _make_images(Path(inside))
        for number in range(4):
            suffix, text = ("cls", str(number)) if number < 2 else ("json", json.dumps({"label": str(number % 2)}))
            (Path(inside) / f"{number}.{suffix}").write_text(text, encoding="utf-8")
            for end in ("png", suffix):
                tar.add(Path(inside) / f"{number}.{end}", f"clip{number}.{end}")


def _read_tar(folder: Path, index: int) -> object:
    path = folder / "a.tar"
    if index % 2:
        items = footage.find_footage(path).items
        return [footage.read_frames(item, lambda count: [0, count - 1], short=8) for item in items]
    listing = read_listing(path)
    data = ClipData(listing, Transform(size=8), View(frames=1), training=False)
    return [listing, [data[at] for at in range(len(data))]]


def _make_masks(folder: Path) -> None:
    objects = torch.zeros(2, 24, 32, dtype=torch.uint8)
    objects[:, 4:10, 4:10], objects[:, 12:20, 12:20] = 1, 2
    masks.write_masks(objects, [folder / "0.png", folder / "1.png"])


def _read_masks(folder: Path, index: int) -> object:
    return masks.read_masks(sorted(folder.glob("*.png")), values=bool(index % 2))


def _make_davis(folder: Path) -> None:
    for part, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        for name in ("bear", "cows"):
            (folder / part / "480p" / name).mkdir(parents=True)
            for number in range(2):
                Image.new("L" if suffix == "png" else "RGB", (8, 8)).save(
                    folder / part / "480p" / name / f"0000{number}.{suffix}"
                )
    (folder / "ImageSets" / "2016").mkdir(parents=True)
    frames = [f"/{a}/480p/{name}/00000.{b}" for name in ("bear", "cows") for a, b in [("JPEGImages", "jpg")]]
    (folder / "ImageSets" / "2016" / "val.txt").write_text("\n".join(f"{f} {f}" for f in frames) + "\n")


def _read_davis(folder: Path, index: int) -> object:
    sequences, split = dense_sets.davis_sequences(folder)
    for files in sequences:
        dense_sets.check_paired(files)
    return [sequences, split, [masks.read_masks(files.labels) for files in sequences]]


def _make_jhmdb(folder: Path) -> None:
    from scipy.io import savemat

    (folder / "joint_positions" / "wave" / "clip").mkdir(parents=True)
    (folder / "Rename_Images" / "wave" / "clip").mkdir(parents=True)
    savemat(
        folder / "joint_positions" / "wave" / "clip" / "joint_positions.mat",
        {"pos_img": np.random.default_rng(0).uniform(1, 30, (2, 15, 2)), "viewpoint": "ENE"},
    )
    for number in (1, 2):
        Image.new("RGB", (32, 24)).save(folder / "Rename_Images" / "wave" / "clip" / f"0000{number}.png")
    (folder / "list.txt").write_text("wave/clip\n", encoding="utf-8")


def _read_jhmdb(folder: Path, index: int) -> object:
    from fewtokens.evaluation.pck import read_joints

    clips, listing = dense_sets.jhmdb_clips(folder, folder / "list.txt")
    return [clips, listing, [read_joints(clip.labels[0]) for clip in clips]]


def _make_released(folder: Path) -> None:
    torch.manual_seed(0)
    dim, hidden = 64, 128
    state = {
        "cls_token": torch.randn(1, 1, dim), "pos_embed": torch.randn(1, 17, dim),
        "patch_embed.proj.weight": torch.randn(dim, 3, 8, 8), "patch_embed.proj.bias": torch.randn(dim),
        "norm.weight": torch.ones(dim), "norm.bias": torch.zeros(dim),
    }  # fmt: skip
    for block in ("blocks.0.", "blocks.1."):
        for name, shape in {
            "norm1.weight": (dim,), "norm1.bias": (dim,), "norm2.weight": (dim,), "norm2.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim), "attn.qkv.bias": (3 * dim,), "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,), "mlp.fc1.weight": (hidden, dim), "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (dim, hidden), "mlp.fc2.bias": (dim,),
        }.items():  # fmt: skip
            state[block + name] = torch.randn(shape) * 0.02
    torch.save({"model": state, "epoch": 3}, folder / "a.pth")


def _read_released(folder: Path, index: int) -> object:
    from fewtokens.encoders.released import load_released

    return [value for value in load_released(folder / "a.pth").state_dict().values() if not value.is_meta]


def _make_model(folder: Path) -> None:
    from fewtokens import networks as models

    torch.manual_seed(0)
    models.build("tokenlearner_vit_nano8_8at2", image_size=(32, 32), num_classes=3).save_pretrained(folder)


def _read_model(folder: Path, index: int) -> object:
    from fewtokens import networks as models

    if index % 2:
        return load_encoder(str(folder)).describe()
    return list(models.load(folder).state_dict().values())


def _make_pretraining(folder: Path) -> None:
    from fewtokens.networks.pretraining import ToBo, ToBoConfig

    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 1, "num_heads": 2, "decoder_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
    ToBo(ToBoConfig(patch_size=8, image_size=(32, 32), **sizes)).save_pretrained(folder)


def _read_pretraining(folder: Path, index: int) -> object:
    from fewtokens.networks.pretrained import load_pretrained_vit, load_pretraining

    model = load_pretraining(folder) if index % 2 else load_pretrained_vit(folder)
    return list(model.state_dict().values())


def _make_encoder(folder: Path) -> None:
    from fewtokens.encoders import ViT, ViTConfig, VitEncoder

    torch.manual_seed(0)
    config = ViTConfig(dim=32, depth=1, num_heads=2, patch_size=8, image_size=(16, 16), num_registers=1)
    VitEncoder(ViT(config)).save_pretrained(folder)


def _read_encoder(folder: Path, index: int) -> object:
    encoder = load_encoder(str(folder))
    return [encoder.describe()["options"], *encoder.state_dict().values()]


def _make_hf(folder: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    transformers.Dinov2Model(config).save_pretrained(folder)


def _read_hf(folder: Path, index: int) -> object:
    encoder = load_encoder(str(folder))
    frames = synthetic("static", frames=1, size=(28, 28)).frames
    return encoder(frames[None])[0].features


def _make_state(folder: Path) -> None:
    from fewtokens.train import checkpoint
    from fewtokens.train.settings import Settings, plain

    torch.manual_seed(0)
    head: checkpoint.Head = {
        "step": 3, "items": 4, "settings": plain(Settings()), "scores": {"top1": 0.5}, "sums": {"loss": 1.5},
        "counted": 2, "inputs": {"data": ["a", "b"]}, "broken": [],
    }  # fmt: skip
    checkpoint.save(folder / "state.safetensors", {"model.a": torch.randn(4, 3)}, head)


def _read_state(folder: Path, index: int) -> object:
    from fewtokens.train import checkpoint

    tensors, header = checkpoint.read(folder / "state.safetensors")
    return [tensors, header]


def _one_demonstration() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8),
        "observations": rng.normal(size=(3, 5)).astype(np.float32),
        "actions": rng.normal(size=(3, 2)).astype(np.float32),
        "rewards": rng.normal(size=3),
    }


def _make_pickle(protocol: int, folder: Path) -> None:
    entries = [_one_demonstration(), _one_demonstration() | {"env_infos": {"success": np.array([0, 0, 1])}}]
    (folder / "a.pickle").write_bytes(pickle.dumps(entries, protocol))


def _make_demonstrations(folder: Path) -> None:
    parts = {name: torch.from_numpy(np.asarray(value)) for name, value in _one_demonstration().items()}
    one = demonstrations.Demonstration(**(parts | {"rewards": parts["rewards"].float()}))
    demonstrations.write(folder / "a.safetensors", [one, one], task="metaworld/hammer", proprio=4)


def _read_demonstrations(folder: Path, index: int) -> object:
    (path,) = folder.iterdir()
    return demonstrations.read(path, None if index % 3 else 1)


def _make_packed(folder: Path) -> None:
    np.save(folder / "a.npy", _frames(4, (16, 16)))


def _read_packed(folder: Path, index: int) -> object:
    (item,) = footage.find_footage(folder).items
    return footage.read_frames(item, lambda count: [0, count - 1], short=8)


def _make_words(folder: Path) -> None:
    from fewtokens.methods.merging.visual_words import save_words

    torch.manual_seed(0)
    save_words(torch.randn(4, 12), folder / "words.safetensors", patch=2)


def _read_words(folder: Path, index: int) -> object:
    return registry.build(f"visual_words(words={str(folder / 'words.safetensors')!r})")[0].spec


def _make_weights(folder: Path) -> None:
    from fewtokens.core.method import save_weights

    torch.manual_seed(0)
    save_weights(registry.build("tokenlearner('4/frame', dim=8)")[0], folder / "weights.safetensors")


def _read_weights(folder: Path, index: int) -> object:
    path = str(folder / "weights.safetensors")
    return list(registry.build(f"tokenlearner('4/frame', dim=8, checkpoint={path!r})")[0].state_dict().values())


def _make_gif(path: Path) -> None:
    write(path, torch.from_numpy(_frames(6, (24, 32))), fps=10)


MEDIA = [
    _media("mp4", lambda path: _encode(path, "libx264")),
    _media("mkv", lambda path: _encode(path, "libx264")),
    _media("webm", lambda path: _encode(path, "libvpx-vp9")),
    _media("mov", lambda path: _encode(path, "mpeg4")),
    _media("avi", lambda path: _encode(path, "mpeg4")),
    _media("ts", lambda path: _encode(path, "libx264", form="mpegts")),
    _media("mpg", lambda path: _encode(path, "mpeg2video")),
    _media("flv", lambda path: _encode(path, "flv")),
    _media("m4v", lambda path: _encode(path, "mjpeg", "yuvj420p", form="mp4")),
    _media("gif", _make_gif),
    _media("webp", lambda path: _pictures(path, animated=True), 200),
    _media("png", lambda path: _pictures(path, animated=True), 200),
    _media("tiff", lambda path: _pictures(path, animated=True), 200),
    _media("jpg", _pictures, 160),
    _media("bmp", _pictures, 160),
]

TARGETS = [
    *MEDIA,
    Target("tokens", 900, _make_tokens, _read_tokens, {"*": mutate.change_safetensors}),
    Target(
        "pipeline", 500, _make_pipeline, _read_pipeline,
        {"config.json": mutate.change_json, "*.safetensors": mutate.change_safetensors},
    ),
    Target(
        "stream", 400, _make_stream, _read_stream,
        {"stream.json": mutate.change_json, "*.safetensors": mutate.change_safetensors},
    ),
    Target("spec", 2000, _make_spec, _read_spec, {"*": mutate.change_text}),
    _list("a.csv", mutate.change_text),
    _list("a.jsonl", mutate.change_json_lines),
    _list("a.txt", mutate.change_text),
    _list("kinetics.csv", mutate.change_text),
    _list("charades.csv", mutate.change_text),
    _list("a.json", mutate.change_json),
    *(_question_set(name) for name in ("nextqa", "activitynetqa", "longvideobench", "videomme", "mvbench")),
    Target(
        "conversations", 150, _make_conversations,
        lambda folder, index: list(qa_sets.read_conversations(folder / "a.json")), {"a.json": mutate.change_json},
    ),
    Target("tar", 500, _make_tar, _read_tar, {"*": mutate.change_tar}),
    Target("masks", 300, _make_masks, _read_masks, {"*": mutate.change_bytes}),
    Target("davis", 150, _make_davis, _read_davis, {"val.txt": mutate.change_text, "*.png": mutate.change_bytes}),
    Target("jhmdb", 150, _make_jhmdb, _read_jhmdb, {"list.txt": mutate.change_text, "*.mat": mutate.change_bytes}),
    Target("checkpoint .pth", 500, _make_released, _read_released, {"*": mutate.change_zip}),
    Target(
        "network folder", 300, _make_model, _read_model,
        {"config.json": mutate.change_json, "*.safetensors": mutate.change_safetensors},
    ),
    Target(
        "pre-training folder", 200, _make_pretraining, _read_pretraining,
        {"config.json": mutate.change_json, "*.safetensors": mutate.change_safetensors},
    ),
    Target(
        "encoder folder", 200, _make_encoder, _read_encoder,
        {"config.json": mutate.change_json, "*.safetensors": mutate.change_safetensors},
    ),
    Target(
        "transformers folder", 300, _make_hf, _read_hf,
        {"config.json": mutate.change_json, "*.safetensors": mutate.change_safetensors},
    ),
    Target("training state", 200, _make_state, _read_state, {"*": mutate.change_safetensors}),
    *(
        Target(
            f"demonstrations pickle {protocol}", 250, functools.partial(_make_pickle, protocol), _read_demonstrations,
            {"*": mutate.change_bytes},
        )
        for protocol in (2, 5)
    ),
    Target("demonstrations", 250, _make_demonstrations, _read_demonstrations, {"*": mutate.change_safetensors}),
    Target("packed frames", 200, _make_packed, _read_packed, {"*": mutate.change_bytes}),
    Target("visual words", 150, _make_words, _read_words, {"*": mutate.change_safetensors}),
    Target("method weights", 150, _make_weights, _read_weights, {"*": mutate.change_safetensors}),
]  # fmt: skip


def _misbehave(kind: str, folder: Path, index: int) -> object:
    import os
    import time

    while kind == "hang":
        pass
    if kind == "crash":
        os.abort()
    if kind == "memory":
        return np.ones(2**28).sum()
    if kind == "unsteady":
        return time.perf_counter_ns()
    if kind == "untidy":
        raise ValueError("two\nlines")
    raise KeyError("not documented")


# Targets that misbehave on purpose: a campaign runs them first and must detect all of them.
CHECKS = [
    Target(f"check {kind}", 1, _make_spec, functools.partial(_misbehave, kind), {"*": mutate.change_bytes})
    for kind in ("hang", "crash", "memory", "unsteady", "untidy", "undocumented")
]


def digest(result: Any) -> str:
    """A hash of a result: simple values, tensors, arrays, dataclasses, paths, and containers of these."""
    import hashlib

    state = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous()
            add((str(part.dtype), tuple(part.shape)))
            state.update(part.flatten().view(torch.uint8).numpy().tobytes() if part.numel() else b"")
        elif isinstance(part, np.ndarray):
            add((str(part.dtype), part.shape))
            state.update(np.ascontiguousarray(part).tobytes())
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            add([getattr(part, field.name) for field in dataclasses.fields(part)])
        elif isinstance(part, dict):
            add(list(part.items()))
        elif isinstance(part, list | tuple | set | frozenset):
            state.update(f"{type(part).__name__} {len(part)}".encode())
            for entry in part:
                add(entry)
        else:
            assert part is None or isinstance(part, str | bytes | int | float | Path | np.generic), type(part)
            state.update(repr(part).encode("utf-8", "surrogatepass"))

    add(result)
    return state.hexdigest()[:16]


def find(name: str) -> Target:
    """The target with this name."""
    return next(target for target in (*TARGETS, *CHECKS) if target.name == name)


def make_examples(folder: Path, targets: Iterable[Target]) -> None:
    """Writes the valid example of each target, unless it exists."""
    for target in targets:
        path = folder / target.name.replace(" ", "_")
        if not path.is_dir():
            unfinished = path.with_name(f".{path.name}")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            target.make(unfinished)
            unfinished.rename(path)

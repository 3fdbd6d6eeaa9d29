"""The families of transformers that take precomputed features, and which of them work with `attach` and `compress`.

Every model folder of transformers with this interface is listed. tests/llm/test_families.py builds a tiny model of each
and checks each column.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TESTED = "5.23 and 5.24"
"""The versions of transformers with which the table was checked."""


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: the `model_type`.
        works: whether `attach` and `compress` work with its models.
        reason: why it does not; or what to know.
        video: whether it takes videos; otherwise a video is a sequence of images.
        axes: the number of axes of positions; 0 if unknown.
        time_text: the text of a time, with ... for the rows of a frame; "" if there is none.
        prompts: whether `fewtokens ask`, `Session` and `Processor` make its prompts; otherwise transformers does.
        cues: the cues of the pixels and of the vision tower that methods can read, keys of `CUES`.
        skips: whether the tower leaves out the patches that methods of the stage "pixels" do not keep.
        merges: whether methods of the stage "encoder" act between the blocks of the tower.
        inside: "all" if methods inside the language model act before every layer; otherwise what they cannot do.
        folder: the folder of transformers.
        since: the first version (major, minor) of transformers that has it, if newer than the lowest supported one.
    """

    name: str
    works: bool = True
    reason: str = ""
    video: bool = False
    axes: int = 1
    time_text: str = ""
    prompts: bool = False
    cues: tuple[str, ...] = ()
    skips: bool = False
    merges: bool = False
    inside: str = ""
    folder: str = ""
    since: tuple[int, int] | None = None

    def row(self) -> dict[str, Any]:
        """The columns for users."""
        columns = asdict(self)
        del columns["folder"], columns["since"]
        return columns


# Written by tests/llm/family_towers.py, which runs methods on a model of each family.
_TOWERS = json.loads(Path(__file__).with_name("family_towers.json").read_text(encoding="utf-8"))


def _video(name: str, axes: int = 1, time_text: str = "", **values: Any) -> Family:
    return _images(name, video=True, axes=axes, time_text=time_text, **values)


def _images(name: str, **values: Any) -> Family:
    tower = _TOWERS.get(name, {})
    return Family(name, **{"folder": name} | tower | {"cues": tuple(tower.get("cues", ()))} | values)


def _fails(folder: str, reason: str, **values: Any) -> Family:
    return Family(**{"name": folder} | values, works=False, reason=reason, axes=0, folder=folder)


_SECONDS = "<0.5 seconds>..."
_AFTER = "...0"
_CHUNKS = "a video is encoded in parts; with several videos in a prompt, `items` says which parts belong together"
_COUNTED = "positions are a count of the columns, so `positions` must be renumber"
_ONE_KIND = "one placeholder for images and videos: a batch of prompts may have only one of them"
_TIMM = "requires the package timm"

FAMILIES = (
    _images("aria", reason="rows of a resampler, which have no place in the image"),
    _images("aya_vision"),
    _images("cohere2_vision"),
    _video("cohere_compass", 3, _SECONDS),
    _video("cosmos3_edge", 3, _SECONDS),
    _video("cosmos3_omni", 3, _SECONDS),
    _images("deepseek_vl"),
    _video("ernie4_5_vl_moe", 3),
    _video("exaone4_5", reason=_COUNTED),
    _images("gemma3"),
    _video("gemma4", time_text="00:00 ..."),
    _video("gemma4_unified", time_text="00:00 ..."),
    _video("glm46v", 3, "...0.5 seconds", reason=_ONE_KIND),
    _video("glm4v", 3, _AFTER, reason=_ONE_KIND),
    _video("glm4v_moe", 3, _AFTER, reason=_ONE_KIND),
    _video("glm5_next", time_text=_AFTER),
    _video("glm_ocr", 3, reason=_ONE_KIND),
    _images("got_ocr2"),
    _video("hyperclovax_vision_v2", reason=_COUNTED),
    _video("hy_v4_vl", 3, since=(5, 24)),
    _images("idefics2", reason="rows of a resampler, which have no place in the image"),
    _images("idefics3"),
    _images("internvl", time_text="Frame1: ...", prompts=True),
    _video("kimi_k25", time_text="00:00:00.500...", reason=_CHUNKS),
    _images("lfm2_vl"),
    _video("lfm3_vl", time_text=_SECONDS),
    _images("lighton_ocr"),
    _images("llava"),
    _images("llava_next", reason="images only: they are in tiles, which form no video"),
    _video("llava_next_video", prompts=True),
    _video("llava_onevision", prompts=True),
    _video("minicpm_ocr", reason=_CHUNKS),
    _video("minicpmv4_6", reason=_CHUNKS),
    _video("minicpmv4_7", 3, reason=_CHUNKS),
    _video("minimax_m3_vl", time_text="]<]0.5 seconds[>[...", reason=_CHUNKS),
    _images("mistral3"),
    _images("mistral_large4"),
    _video("molmo2", time_text="0.5 ...", reason=_ONE_KIND),
    _video("muse_glimmer", time_text="Time: 0.5s..."),
    _video("nemotron_h_omni", time_text="Frame 1 sampled at 0.50 seconds...", reason=_ONE_KIND),
    _images("ovis2"),
    _images("paddleocr_vl", axes=3),
    _images("paligemma"),
    _video("perception_lm"),
    _images("qianfan_ocr"),
    _video("qwen2_5_omni_thinker", 3, folder="qwen2_5_omni", reason="without the audio of a video"),
    _video("qwen2_5_vl", 3, prompts=True),
    _video("qwen2_vl", 3, prompts=True),
    _video("qwen3_5", 3, _SECONDS, prompts=True),
    _video("qwen3_5_moe", 3, _SECONDS, prompts=True),
    _video("qwen3_omni_moe_thinker", 3, folder="qwen3_omni_moe", reason="without the audio of a video"),
    _video("qwen3_vl", 3, _SECONDS, prompts=True),
    _video("qwen3_vl_moe", 3, _SECONDS, prompts=True),
    _video("qwen4_exp", 3, _SECONDS, prompts=True),
    _images("smolvlm", time_text="Frame from 00:00:...", prompts=True),
    _images("step3p7"),
    _video("video_llama_3", time_text="Time 0.5s:...", prompts=True),
    _video("video_llava"),
    _images("vipllava"),
    _fails("blip_2", "forward does not accept a cache", name="blip-2"),
    _fails("chameleon", "images are discrete tokens"),
    _fails("deepseek_ocr2", "not tested: no small config"),
    _fails("deepseek_vl_hybrid", "not tested: no small config"),
    _fails("diffusion_gemma", "generates by diffusion, not token by token"),
    _fails("dots3_note", "not tested: no small config"),
    _fails("emu3", "images are discrete tokens"),
    _fails("fast_vlm", _TIMM),
    _fails("florence2", "an encoder reads the features, not a decoder"),
    _fails("fuyu", "features without the size of the image"),
    _fails("gemma3n", _TIMM),
    _fails("glm_image", "generates images"),
    _fails("granite4_vision", "features for single layers only"),
    _fails("granite_docling", "not tested: tiles with masks"),
    _fails("hunyuan_vl", "rows for the boundaries of an image"),
    _fails("inkling", "not tested: no small config", name="inkling_mm_model"),
    _fails("inkling2", "not tested: no small config"),
    _fails("instructblip", "forward requires pixels"),
    _fails("instructblipvideo", "forward requires pixels"),
    _fails("janus", "not tested: no small config"),
    _fails("llama4", "features are not in pooler_output"),
    _fails("muse_spark", "not tested: no small config"),
    _fails("pe_audio_video", "no language model"),
    _fails("t5gemma2", "an encoder reads the features, not a decoder"),
    _fails("unlimited_ocr", "not tested: no small config"),
    _fails("apertus1p5", "not tested", since=(5, 24)),
    _fails("embedding_gemma2", "no language model that generates", since=(5, 24)),
    _fails("inkling2_loop", "not tested: no small config", since=(5, 24)),
)
"""Each model folder of transformers with the interface, by `model_type`."""


def find_family(name: str) -> Family:
    """Returns the family of a `model_type`.

    Raises:
        ValueError: it is not in the table.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    close = difflib.get_close_matches(name, [family.name for family in FAMILIES], n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "run 'fewtokens llm-families' to list all"
    raise ValueError(f"no family {name!r}; {hint}")

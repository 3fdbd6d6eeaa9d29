"""Where the spec comes from, and where every process of the engine finds it."""

from __future__ import annotations

import os
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from fewtokens.serve.contract import served_pipeline
from fewtokens.version import __version__

KEY, VARIABLE = "fewtokens", "FEWTOKENS_SPEC"


class ReadSpec(VerifyAndUpdateConfig):
    """Called by vLLM once, when its config is complete and before its processes start."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Reads the spec, checks it, and writes it to the config, which vLLM passes to all its processes.

        It is read from `additional_config`, from `mm_processor_kwargs`, or from the environment variable; the first
        that is set counts. It is written to `additional_config`, which is part of the hash of the config.

        Raises:
            ValueError: the spec cannot be served, or an option of vLLM cannot be combined with it.
        """
        spec = requested_spec(vllm_config)
        if not spec:
            return
        served_pipeline(spec)
        model_config = vllm_config.model_config
        multimodal = model_config.multimodal_config
        if multimodal.is_multimodal_pruning_enabled():
            raise ValueError("video_pruning_rate prunes the same tokens as fewtokens; set only one of the two")
        if vllm_config.speculative_config is not None:
            raise ValueError("fewtokens has not been tested with speculative decoding in vLLM; turn one of the two off")
        if getattr(vllm_config.lora_config, "enable_tower_connector_lora", False):
            raise ValueError("adapters in the encoder count its rows, which fewtokens reduces; turn one of the two off")
        options = multimodal.mm_processor_kwargs or {}
        multimodal.mm_processor_kwargs = {name: value for name, value in options.items() if name != KEY} or None
        identity = {"spec": spec, "version": __version__}
        vllm_config.additional_config = {**(vllm_config.additional_config or {}), KEY: identity}
        model_config.hf_config.fewtokens = identity
        if model_config.uses_mrope:
            # vLLM asks a model for the positions of pruned rows only if a rate is set.
            multimodal.video_pruning_rate = 0.5


class RefuseSpec(VerifyAndUpdateConfig):
    """In the place of `ReadSpec` for models that the plugin does not serve, which would ignore a spec."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Does what vLLM does for the model.

        Raises:
            ValueError: a spec is set.
        """
        if requested_spec(vllm_config):
            architecture = vllm_config.model_config.architecture
            raise ValueError(f"fewtokens does not serve {architecture}; its guide lists the models. Remove the spec")
        super().verify_and_update_config(vllm_config)


def requested_spec(vllm_config: Any) -> str:
    """The spec that is set for a model with images or videos, or ""."""
    multimodal = vllm_config.model_config.multimodal_config
    if multimodal is None:  # vLLM runs only the language model
        return ""
    of_engine = (vllm_config.additional_config or {}).get(KEY)
    of_processor = (multimodal.mm_processor_kwargs or {}).get(KEY)
    return _spec(of_engine) or _spec(of_processor) or os.environ.get(VARIABLE, "").strip()


def _spec(setting: Any) -> str:
    """The spec of {"spec": "..."} or of a string."""
    spec = setting.get("spec", "") if isinstance(setting, dict) else setting or ""
    if not isinstance(spec, str):
        raise ValueError(f'{KEY} must be a spec or {{"spec": "..."}}, got {setting!r}')
    return spec.strip()


def identity_of(model_config: Any) -> dict[str, str] | None:
    """The spec and the version of fewtokens that determine the rows of a video; None if there is no spec."""
    identity: dict[str, str] | None = getattr(model_config.hf_config, KEY, None)
    return identity


def spec_of(model_config: Any) -> str | None:
    """The spec, or None."""
    identity = identity_of(model_config)
    return None if identity is None else identity["spec"]


def normalization(model_config: Any) -> tuple[list[float], list[float]]:
    """The mean and the standard deviation by which the processor of a model normalizes videos."""
    from vllm.transformers_utils.processor import cached_processor_from_config

    processor = cached_processor_from_config(model_config)
    of_video = getattr(processor, "video_processor", None) or processor.image_processor
    return list(of_video.image_mean), list(of_video.image_std)

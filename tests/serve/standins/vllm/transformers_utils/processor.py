from types import SimpleNamespace


def cached_processor_from_config(model_config, processor_cls=None, **kwargs):
    return SimpleNamespace(video_processor=SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.25] * 3))

from dataclasses import dataclass, field


@dataclass
class _ModelRegistry:
    models: dict = field(default_factory=dict)

    def get_supported_archs(self):
        return self.models.keys()

    def register_model(self, model_arch, model_cls):
        self.models[model_arch] = model_cls


ModelRegistry = _ModelRegistry()

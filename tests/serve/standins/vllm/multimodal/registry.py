class MultiModalRegistry:
    def register_processor(self, processor, *, info, dummy_inputs):
        def wrapper(model_cls):
            model_cls._processor_factory = (processor, info, dummy_inputs)
            return model_cls

        return wrapper

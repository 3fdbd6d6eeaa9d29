class VerifyAndUpdateConfig:
    @staticmethod
    def verify_and_update_config(vllm_config):
        return


MODELS_CONFIG_MAP = {}

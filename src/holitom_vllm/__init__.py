"""HoliTom inside vLLM: a plug-in with a model class of its own beside the stock LLaVA-OneVision, chosen by its name. ::

    LLM("llava-hf/llava-onevision-qwen2-7b-ov-hf", video_pruning_rate=0.9,
        hf_overrides={"architectures": ["HoliTomLlavaOnevision"], "holitom": {"method": "HoliTom", "tau": 0.65}})

``holitom.attach`` acts in transformers' models; this acts in vLLM's, before the language model only. docs/serving.md.
"""

NAME = "HoliTomLlavaOnevision"
"""The architecture that ``hf_overrides`` asks for."""


def register() -> None:
    """The entry point of ``vllm.general_plugins``: every process of an engine calls it."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(NAME, "holitom_vllm.model:HoliTomLlavaOnevision")

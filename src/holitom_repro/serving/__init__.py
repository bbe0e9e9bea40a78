"""Reduced prompts for inference engines: what the language model would be given, as a file (docs/serving.md)."""

from holitom_repro.serving.embeds import PromptEmbeds, load, prompt_embeds, save

__all__ = ["PromptEmbeds", "load", "prompt_embeds", "save"]

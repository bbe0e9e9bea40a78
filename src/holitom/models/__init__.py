"""Adapters: what token reduction needs to know about one family of video language models, one file per family."""

from holitom.models.base import ADAPTERS, Adapter, AdapterBase, EncodedVideos, adapter_for

__all__ = ["ADAPTERS", "Adapter", "AdapterBase", "EncodedVideos", "adapter_for"]

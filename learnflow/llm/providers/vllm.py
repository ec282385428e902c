"""VLLMProvider: the ``vllm`` row as a class."""

from ..adapter.provider import BaseProvider


class VLLMProvider(BaseProvider):
    """The ``vllm`` row; see ``BaseProvider``."""

    row = "vllm"

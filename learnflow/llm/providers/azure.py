"""AzureProvider: the ``azure`` row as a class, in both dialects of Azure's addresses."""

from ..adapter.provider import BaseProvider
from ..spec import AZURE_V1, ProviderSpec


class AzureProvider(BaseProvider):
    """The ``azure`` row; ``model`` is the name of a deployment. See ``BaseProvider``.

    An address that ends in ``/openai/v1``, or an API version ``v1``, ``latest`` or ``preview``: the newer dialect.
    """

    row = "azure"

    def _dialect(self, url: str, version: str | None) -> ProviderSpec:
        newer = "/openai/v1" in url or url.endswith("/v1/chat/completions") or version in ("v1", "latest", "preview")
        return AZURE_V1 if newer else super()._dialect(url, version)

"""What the providers of this package have in common."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapter.provider import BaseProvider
from ..spec import ProviderSpec


class VendorProvider(BaseProvider):
    """A provider of this package: it knows which other kinds of server may be what answers at its address."""

    def _kinds(self) -> Sequence[ProviderSpec]:
        from .registry import kinds  # noqa: PLC0415  # the registry imports every vendor, this one's too

        return kinds()

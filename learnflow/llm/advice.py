"""What the person must do: an error with the provider's name, its address, and the variable to mend.

Must never decide what went wrong: it is told.
The adapter passes its errors through here, and ``knowledge`` what a look showed.
"""

from __future__ import annotations

from . import errors
from .errors import LLMError
from .spec import ProviderSpec
from .transport.endpoint import Endpoint


def addressed(error: LLMError, spec: ProviderSpec, endpoint: Endpoint, model: str | None) -> LLMError:
    """The same error, which now says who failed and which variable to set."""
    error.provider, error.model = spec.name, error.model or model
    url = spec.env_url[0]
    if isinstance(error, errors.ModelNotFound):
        error.hint = error.hint or f"Set {spec.env_model[0]} or model= to a name that list_models() gives"
    elif isinstance(error, errors.AuthenticationFailed):
        error.hint = endpoint.key_hint
    elif isinstance(error, errors.Misconfigured) and url not in error.hint:
        error.hint = f"{error.hint}; the address in use is {endpoint.base}, the variable {url}"
    elif isinstance(error, errors.ConnectionFailed | errors.ConnectTimeout):
        local = f"Start {spec.title} at {endpoint.base}, or set {url} to where it is"
        away = f"Check the network, HTTPS_PROXY, and the address {endpoint.base} ({url})"
        error.hint = error.hint or (local if spec.local else away)
    return error

"""``warm-up``: load a model into the server's memory.

Must never be silent at the end: it says what it did.
The command line calls it.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

from .. import errors
from ..adapter.provider import BaseProvider
from ..discovery import found
from ..errors import LLMError
from ..providers import build
from .status import NONE_READY, READY, chain_of
from .terminal import progress, say, write


async def warm_up(options: SimpleNamespace) -> int:
    """Load the model of each local provider that would be used. Returns 0 where one is loaded."""
    chain = chain_of(options)
    providers = chain or await found()
    loaded = 0
    for provider in providers:
        try:
            write(await _loaded(build(provider) if isinstance(provider, str) else provider, options))
            loaded += 1
        except errors.NotRecorded:
            raise
        except LLMError as error:
            say(str(error))
    return READY if loaded else NONE_READY


async def _loaded(provider: BaseProvider, options: SimpleNamespace) -> str:
    """What was done."""
    began = time.monotonic()
    before = await provider.refresh()
    if not provider.spec.local:
        return f"{provider.name}: a cloud loads its models itself"
    more = {} if options.keep_alive is None else {"keep_alive": options.keep_alive}
    with progress(f"{provider.name}: loading {options.model or before.model or 'the model'}"):
        await provider.warm_up(options.model, **more)
    model = options.model or (await provider.refresh()).model
    if before.model == model and before.cold is False and not more:
        return f"{provider.name}: {model} was loaded already"
    return f"{provider.name}: {model} is loaded ({time.monotonic() - began:.1f} s)"

"""Structured answers: how a schema is asked for, rung by rung, and whether the answer is one.

Must never trust a server's promise, or know which server it was.
The request asks ``asked_for``, the adapter ``parsed``.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from .errors import SchemaMismatch
from .specs import Rung

if TYPE_CHECKING:
    from pydantic import BaseModel

_FENCE: Final = re.compile(r"^\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)


def asked_for(wanted: type[BaseModel], rung: Rung) -> tuple[Any, str | None]:
    """What goes into ``response_format`` on this rung, and the words that go with it."""
    if rung == "json_schema":
        return wanted, None  # LiteLLM makes OpenAI's strict schema of a class
    schema = json.dumps(wanted.model_json_schema(), ensure_ascii=False)
    words = f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    return ({"type": "json_object"} if rung == "json_object" else None), words


def parsed(wanted: Any, text: str, finish: str) -> Any:
    """The instance of the class, or None where only a dict was asked for.

    Raises:
        SchemaMismatch: the text is not what was asked for.
    """
    if wanted is None or (isinstance(wanted, dict) and (wanted.get("type") == "text" or finish == "length")):
        return None
    from pydantic import ValidationError  # noqa: PLC0415  # only who asks for a schema needs it

    fenced = _FENCE.match(text)
    body = fenced.group(1) if fenced else text
    cut = " (it was cut at max_tokens)" if finish == "length" else ""
    try:
        if isinstance(wanted, dict):
            json.loads(body)
            return None
        return wanted.model_validate_json(body)
    except ValidationError as error:
        # names of fields only: deeper places may be keys that the model wrote
        places = [str(fault["loc"][0]) if fault["loc"] else "JSON" for fault in error.errors(include_input=False)]
        named = [place for place in dict.fromkeys(places) if place == "JSON" or place in wanted.model_fields]
        what = f"the answer does not fit {wanted.__name__}{cut}: {', '.join(named)}".rstrip(": ")
    except ValueError:
        what = f"the answer is no JSON{cut}"
    raise SchemaMismatch(what)

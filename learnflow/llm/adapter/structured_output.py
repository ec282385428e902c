"""Structured output: request a schema in one of three modes, validate the answer, and ask for a correction.

Every answer is validated, also if the server guarantees the schema. A request is written with ``write_format``, an
answer is read with ``parse``, and ``run_with_corrections`` repeats attempts.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ..base import Attempt
from ..completion import Completion, TextDelta
from ..errors import CapabilityError, LLMError, RequestError, SchemaMismatch, Tried
from ..provider_spec import SchemaMode
from ..stream import Emit, Work
from ..transport.untrusted import parse_json, printable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .request import Request

_MAX_REASON_CHARS: Final = 1000  # a validation message may quote the whole answer
_JSON_START: Final = re.compile(r'\{\s*["}]|\[\s*["{\[]')  # not a brace or a bracket of a sentence
_DECODER: Final = json.JSONDecoder(strict=False)  # with line ends in strings


def write_format(response_format: type[BaseModel] | dict[str, Any], mode: SchemaMode) -> tuple[Any, str | None]:
    """Return the ``response_format`` parameter and the instruction for the prompt; None for each that is not needed."""
    if mode == "json_schema" or isinstance(response_format, dict):
        return response_format, None  # LiteLLM converts a class to OpenAI's strict schema
    schema = json.dumps(response_format.model_json_schema(), ensure_ascii=False)
    instruction = f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    return ({"type": "json_object"} if mode == "json_object" else None), instruction


def write_correction(reason: str) -> str:
    """Return the message that asks a model to correct its answer, given the fault of the answer."""
    action = "Answer again from the beginning, with the whole corrected JSON and nothing else."
    return f"Your answer above is not what was asked for: {reason}\n\n{action}"


def is_validated(response_format: Any) -> bool:
    """Return whether answers in this format are validated."""
    is_text = isinstance(response_format, dict) and response_format.get("type") == "text"
    return response_format is not None and not is_text


def parse(response_format: Any, text: str) -> Any:
    """Parse an answer.

    Args:
        response_format: the caller's ``response_format``.
        text: the answer.

    Returns:
        An instance if the format is a class, the JSON value if it is a dict; None for plain text.

    Raises:
        SchemaMismatch: the text does not match the format.
    """
    if not is_validated(response_format):
        return None
    if isinstance(response_format, dict):
        value = parse_json_answer(text)
        if response_format.get("type") == "json_schema":
            _validate(value, response_format["json_schema"].get("schema"))
        return value
    from pydantic import ValidationError  # noqa: PLC0415  # only a schema needs it

    try:
        return response_format.model_validate_json(_only_json(text))
    except ValidationError as error:
        # The message names only fields of the class. Deeper locations may contain keys that the model wrote.
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        locations = dict.fromkeys(str(fault["loc"][0]) if fault["loc"] else "JSON" for fault in faults)
        fields = [name for name in locations if name == "JSON" or name in response_format.model_fields]
        what = f"the answer does not match {response_format.__name__}: {', '.join(fields)}".rstrip(": ")
        reasons = [f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}" for fault in faults]
        raise _mismatch(what, "; ".join(reasons)) from None
    except Exception as error:  # noqa: BLE001  # a validator of the caller may raise anything
        what = f"the answer does not match {response_format.__name__}: a validator raised {type(error).__name__}"
        raise _mismatch(what, what) from None


async def run_with_corrections(
    start: Callable[[Request, Attempt], Work],
    request: Request,
    attempt: Attempt,
    max_corrections: int,
    limit_s: float,
    provider: str,
    emit: Emit,
) -> Completion:
    """Run attempts until an answer matches its schema. After a mismatch, ask the model for a correction.

    Args:
        start: returns the work of an attempt.
        request: the caller's request.
        attempt: the first attempt.
        max_corrections: how many corrections may be requested.
        limit_s: time limit of all attempts together, in seconds.
        provider: the name of the provider, for errors.
        emit: receives the answer in one piece.

    Raises:
        LLMError: the last attempt failed. If the provider refuses the request for a correction, the mismatch before it
            is raised, because the caller did not write that request.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    rejected, tried = list[Completion](), attempt.tried
    failure: LLMError | None = None  # the error to raise
    while True:
        began = loop.time()
        try:
            completion = await start(replace(request, timeout=started + limit_s - began), attempt)(Emit())
            emit(TextDelta(completion.text))
            return _add_rejected(completion, rejected, began - started)
        except LLMError as error:
            tried.append(Tried(provider, error.model, type(error).__name__, error.status, loop.time() - began))
            refused = isinstance(error, (CapabilityError, RequestError))
            last, failure = error, failure if failure and refused else error
        left_s = started + limit_s - loop.time()
        if not isinstance(last, SchemaMismatch) or not last.reason or len(tried) > max_corrections or left_s <= 0:
            failure.attempts = tuple(tried) if len(tried) > 1 else ()
            raise failure.with_traceback(None)
        rejected.append(last.answer)
        request = request.with_correction(last.answer.text, last.reason)
        patience = attempt.patience and min(attempt.patience, left_s / 2)  # the rest is for other providers
        attempt = replace(attempt, number=attempt.number + 1, patience=patience)


def _add_rejected(completion: Completion, rejected: Sequence[Completion], delay_s: float) -> Completion:
    """Add the usage, the cost and the time of rejected answers to a completion.

    Args:
        completion: the completion of the last attempt.
        rejected: the completions of the attempts before it.
        delay_s: seconds from the start of the first attempt to the start of the last.
    """
    if not rejected:
        return completion
    costs = [answer.cost for answer in (*rejected, completion)]
    return replace(
        completion,
        usage=sum((answer.usage for answer in rejected), completion.usage),
        cost=None if None in costs else sum(cost for cost in costs if cost is not None),
        first_token_s=None if completion.first_token_s is None else delay_s + completion.first_token_s,
        total_s=delay_s + completion.total_s,
        attempts=len(rejected) + completion.attempts,
    )


# These keywords are not validated. On some answers they take unlimited time, and would block the event loop.
_UNBOUNDED_KEYWORDS: Final = ("pattern", "patternProperties", "uniqueItems")


def _validate(answer: Any, schema: Any) -> None:
    """Raise SchemaMismatch if an answer does not match a JSON schema. An invalid schema accepts every answer."""
    if not isinstance(schema, dict):
        return
    import jsonschema  # noqa: PLC0415  # only a schema needs it
    from referencing import Registry  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        draft = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        draft.check_schema(schema)
        bounded: Any = jsonschema.validators.extend(draft, dict.fromkeys(_UNBOUNDED_KEYWORDS, lambda *_: None))  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001  # the server accepted this invalid schema
        return
    try:
        validator = bounded(schema, registry=Registry())  # without access to the network
        fault = jsonschema.exceptions.best_match(validator.iter_errors(answer))
    except Unresolvable:
        return  # a $ref refers to another document
    except Exception as error:  # noqa: BLE001  # huge numbers, deep nesting
        what = f"the answer cannot be validated against the JSON schema ({type(error).__name__})"
        raise _mismatch(what, what) from None
    if fault:
        properties = schema.get("properties")
        field = str(fault.absolute_path[0]) if fault.absolute_path else ""
        location = f" at {field}" if isinstance(properties, dict) and field in properties else ""
        what = f"the answer does not match the JSON schema{location} ({fault.validator})"
        raise _mismatch(what, f"{fault.json_path}: {fault.message}")


def parse_json_answer(text: str) -> Any:
    """Parse an answer as JSON. Raise SchemaMismatch if it is not JSON."""
    try:
        return parse_json(_only_json(text))
    except ValueError as error:
        raise _mismatch("the answer is not JSON", f"it is not JSON ({error})") from None


def _mismatch(what: str, reason: str) -> SchemaMismatch:
    """Return a SchemaMismatch.

    Args:
        what: the fault, without text of the answer.
        reason: the fault in detail, to send to the model. It may quote the answer.
    """
    error = SchemaMismatch(what)
    error.reason = printable(reason, _MAX_REASON_CHARS)
    return error


def _only_json(text: str) -> str:
    """Return the only object or list in an answer, which may have a Markdown fence and sentences around it.

    Return the answer itself if it has none or several different ones, or if one of them is incomplete.
    """
    answer = text.strip().removeprefix("\ufeff").strip()
    candidates, end = set[str](), 0
    while answer[:1] != '"' and (start := _JSON_START.search(answer, end)):  # a JSON string may contain braces
        try:
            end = _DECODER.raw_decode(answer, start.start())[1]
        except (ValueError, RecursionError):
            return answer
        candidates.add(answer[start.start() : end])
    return candidates.pop() if len(candidates) == 1 else answer

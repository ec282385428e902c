"""Structured output: request a schema in one of three modes, validate the answer, and request a correction.

In the mode "json_schema", the ``response_format`` parameter contains the schema. In "json_object", this parameter
requests any JSON, and the prompt contains the schema. In "prompt", only the prompt contains the schema.

Every answer is validated, even if the server guarantees the schema.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from ..base import Attempt
from ..completion import Completion, TextDelta
from ..errors import CapabilityError, FailedAttempt, LLMError, RequestError, SchemaMismatch
from ..provider_spec import SchemaMode
from ..stream import Emit, Work
from ..transport.untrusted import object_at, parse_json, printable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from .request import Request

_MAX_REASON_CHARS: Final = 1000  # a validation message may quote the whole answer
_JSON_START: Final = re.compile(
    r'\{\s*["}]|\[\s*["{\[]'
)  # the start of an object or a list, not a bracket in a sentence
_FENCE: Final = re.compile(r"(?:```\w*)?")  # a Markdown fence, or nothing
_DECODER: Final = json.JSONDecoder(strict=False)  # allow control characters in strings
_MAX_FAULTS: Final = 1000  # with more faults, the error lists none


def write_format(response_format: type[BaseModel] | dict[str, Any], mode: SchemaMode) -> tuple[Any, str | None]:
    """Return the ``response_format`` parameter and an instruction for the prompt; None for what is not needed."""
    if mode == "json_schema" or isinstance(response_format, dict):
        return response_format, None  # LiteLLM converts a class to OpenAI's strict schema
    schema = json.dumps(response_format.model_json_schema(), ensure_ascii=False)
    instruction = f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{schema}"
    return ({"type": "json_object"} if mode == "json_object" else None), instruction


def write_correction(reason: str) -> str:
    """Return the message that asks a model to correct an answer with the fault ``reason``."""
    action = "Answer again from the beginning, with the whole corrected JSON and nothing else."
    return f"Your answer above is not what was asked for: {reason}\n\n{action}"


def is_validated(response_format: Any) -> bool:
    """Return whether answers in this format are validated."""
    is_text = isinstance(response_format, dict) and response_format.get("type") == "text"
    return response_format is not None and not is_text


def parse(response_format: Any, text: str) -> Any:
    """Parse and validate an answer.

    Return an instance if the format is a class, the JSON value if it is a dict, and None for plain text.

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

    value = parse_json_answer(text)
    try:
        check_step_count(response_format.model_json_schema(), value)
        return response_format.model_validate_json(_only_json(text))
    except ValidationError as error:
        few = error.error_count() <= _MAX_FAULTS
        faults = error.errors(include_url=False, include_context=False, include_input=False) if few else []
        # The error names only fields of the class, because deeper locations may contain keys that the model wrote
        locations = dict.fromkeys(str(fault["loc"][0]) if fault["loc"] else "JSON" for fault in faults)
        fields = [name for name in locations if name == "JSON" or name in response_format.model_fields]
        what = f"the answer does not match {response_format.__name__}: {', '.join(fields)}".rstrip(": ")
        reasons = [f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}" for fault in faults]
        raise _mismatch_error(what, "; ".join(reasons) or what) from None
    except Exception as error:  # noqa: BLE001  # TooManySteps, or anything from a validator of the caller
        raise _validation_failed_error(response_format.__name__, error) from None


def check_complete(response_format: Any, text: str) -> None:
    """Raise SchemaMismatch unless an answer is one complete object or list, alone or in a Markdown fence.

    Call it if the answer ended at a token limit.
    """
    if not is_validated(response_format):
        return
    start, json_text, end = text.partition(_only_json(text))
    has_more = not all(_FENCE.fullmatch(around.strip(" \r\n\t\ufeff")) for around in (start, end))
    if has_more or json_text[:1] not in ("{", "["):
        raise SchemaMismatch("the answer may be incomplete")


async def parse_async(response_format: Any, text: str) -> Any:
    """Call ``parse``. Validate against a JSON schema in a thread, because that may take a second.

    Validate against a pydantic class in the event loop, because its validators may require the event loop.
    """
    if isinstance(response_format, dict):
        return await asyncio.to_thread(parse, response_format, text)
    return parse(response_format, text)


async def run_with_corrections(
    start: Callable[[Request, Attempt], Work],
    request: Request,
    attempt: Attempt,
    max_corrections: int,
    limit_s: float,
    provider: str,
    emit: Emit,
) -> Completion:
    """Run attempts until an answer matches its schema, and emit this answer in one piece.

    After a mismatch, the next attempt requests a correction from the model. ``start`` returns the coroutine function
    that runs an attempt. All attempts together take at most ``limit_s`` seconds.

    Raises:
        LLMError: the last attempt failed. If the provider refuses a correction request, the previous SchemaMismatch
            is raised, because the caller did not write the correction request.
    """
    loop = asyncio.get_running_loop()
    first_began = loop.time()
    rejected, failed_attempts = list[Completion](), attempt.failed_attempts
    failure: LLMError | None = None  # the error to raise
    while True:
        began = loop.time()
        try:
            work = start(replace(request, timeout=first_began + limit_s - began), attempt)
            completion = await work(Emit())  # its events are dropped: the answer may be rejected
            emit(TextDelta(completion.text))
            return _add_rejected(completion, rejected, began - first_began)
        except LLMError as error:
            failed_attempts.append(FailedAttempt.of(error, provider, None, loop.time() - began))
            refused = isinstance(error, (CapabilityError, RequestError))
            last, failure = error, failure if failure and refused else error
        left_s = first_began + limit_s - loop.time()
        if (
            not isinstance(last, SchemaMismatch)
            or not last.reason
            or len(failed_attempts) > max_corrections
            or left_s <= 0
        ):
            failure.attempts = tuple(failed_attempts) if len(failed_attempts) > 1 else ()
            raise failure.with_traceback(None)
        rejected.append(last.answer)
        request = request.with_correction(last.answer.text, last.reason)
        # If the router reserves time for other providers, leave them half of the time
        max_first_token_s = attempt.max_first_token_s and min(attempt.max_first_token_s, left_s / 2)
        attempt = replace(attempt, number=attempt.number + 1, max_first_token_s=max_first_token_s)


def _add_rejected(completion: Completion, rejected: Sequence[Completion], delay_s: float) -> Completion:
    """Add the usage, the cost and the time of rejected answers to the last completion.

    ``delay_s`` is the time in seconds from the start of the first attempt to the start of the last.
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


# Limit of one validation, which then takes a second at most. A step is the check of one keyword. Long values and
# messages count as more steps.
_MAX_STEPS: Final = 100_000
# Limit of nested keywords. Without it, jsonschema could raise a RecursionError. Its Rust dependency may then raise a
# PanicException, which ``_validate`` would not catch, because it is not a subclass of Exception.
_MAX_DEPTH: Final = 200
# These keywords are not validated, because some answers would take unlimited time.
_UNCHECKED_KEYWORDS: Final = (
    "pattern",
    "patternProperties",
    "uniqueItems",
    "unevaluatedItems",
    "unevaluatedProperties",
)


class TooManySteps(ValueError):
    """A validation exceeds ``_MAX_STEPS`` or ``_MAX_DEPTH``."""


@dataclass(slots=True)
class _Validation:
    """A running validation against a JSON schema."""

    steps_left: int
    depth: int = 0  # of the current keyword
    # (keyword, id of the schema, id of the value) -> (schema, value, first fault). Without this cache, a recursive
    # union would validate a value exponentially often. It holds the schemas and the values, so that no id is reused
    first_faults: dict[tuple[str, int, int], tuple[Any, Any, Any]] = field(default_factory=dict)

    def spend(self, steps: int) -> None:
        """Subtract steps. Raise TooManySteps if the validation exceeds a limit."""
        self.steps_left -= steps
        if self.steps_left < 0 or self.depth > _MAX_DEPTH:
            raise TooManySteps


_validation: ContextVar[_Validation] = ContextVar("learnflow_llm_validation")


@cache
def _limit_steps(validator_class: Any) -> Any:
    """Return a copy of a jsonschema validator class that counts its steps in ``_validation``."""
    import attrs  # noqa: PLC0415  # jsonschema's classes are attrs classes
    from jsonschema import ValidationError, validators  # noqa: PLC0415

    def counted(name: str, keyword: Any) -> Any:
        def validate(validator: Any, keyword_value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
            if name == "additionalProperties" and "patternProperties" in schema:
                return  # an unchecked pattern may allow the property
            validation, key = _validation.get(), (name, id(schema), id(instance))
            validation.spend(1)
            if key not in validation.first_faults:
                sizes = [len(item) for item in (keyword_value, instance) if isinstance(item, list | dict)]
                validation.spend(sum(sizes) // 16)
                fault = None
                validation.depth += 1
                for error in keyword(validator, keyword_value, instance, schema) or ():
                    validation.spend(4 + len(error.message) // 128)
                    error.message = error.message[:_MAX_REASON_CHARS]
                    fault = fault or error
                validation.depth -= 1
                validation.first_faults[key] = schema, instance, fault
            if fault := validation.first_faults[key][2]:
                yield ValidationError.create_from(fault)  # a copy, because validators change the path of the error

        return validate

    keywords = {name: counted(name, keyword) for name, keyword in validator_class.VALIDATORS.items()}
    unchecked = dict.fromkeys(_UNCHECKED_KEYWORDS, lambda *_: None)
    limited_class: Any = validators.extend(validator_class, keywords | unchecked)  # type: ignore[no-untyped-call]
    limited_class.evolve = attrs.evolve  # jsonschema's own ``evolve`` selects another class at each "$schema"
    return limited_class


def _validate(answer: Any, schema: Any) -> None:
    """Raise SchemaMismatch if an answer does not match a JSON schema. An invalid schema accepts every answer."""
    if not isinstance(schema, dict):
        return
    import jsonschema  # noqa: PLC0415  # only a schema needs it
    from referencing import Registry  # noqa: PLC0415
    from referencing.exceptions import Unresolvable  # noqa: PLC0415

    try:
        validator_class = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        validator_class.check_schema(schema)
    except Exception:  # noqa: BLE001  # the server accepted this invalid schema
        return
    _validation.set(_Validation(_MAX_STEPS))
    try:
        validator = _limit_steps(validator_class)(schema, registry=Registry())  # without access to the network
        fault = jsonschema.exceptions.best_match(validator.iter_errors(answer))
    except Unresolvable:
        return  # a $ref refers to another document
    except Exception as error:  # noqa: BLE001  # too many steps, huge numbers, deep nesting
        raise _validation_failed_error("the JSON schema", error) from None
    if fault:
        properties = schema.get("properties")
        field = str(fault.absolute_path[0]) if fault.absolute_path else ""
        location = f" at {field}" if isinstance(properties, dict) and field in properties else ""
        what = f"the answer does not match the JSON schema{location} ({fault.validator})"
        raise _mismatch_error(what, f"{fault.json_path}: {fault.message}")


# JSON Schema's applicators: the keywords that apply a subschema to the same value or to a part of it.
_APPLICATORS: Final = {"$ref", "anyOf", "oneOf", "allOf", "properties", "items", "prefixItems", "additionalProperties"}


def check_step_count(schema: Mapping[str, Any], value: Any) -> None:
    """Raise TooManySteps if pydantic would take more than ``_MAX_STEPS`` to validate an answer.

    A pydantic validation cannot be interrupted, and it tries every member of a union. ``schema`` is the JSON schema of
    the class, and ``value`` the parsed answer.
    """
    definitions = schema.get("$defs") or schema.get("definitions") or {}
    counts: dict[tuple[int, int], int] = {}

    def count(schema: Any, value: Any) -> int:
        pair = id(schema), id(value)
        if pair in counts or not isinstance(schema, dict):
            return counts.get(pair, 0)
        counts[pair] = 1 + len(schema.get("enum", ())) // 16
        if not _APPLICATORS.isdisjoint(schema):
            members = [*chain(*(schema.get(keyword, ()) for keyword in ("anyOf", "oneOf", "allOf")))]
            reference = schema.get("$ref")
            if discriminator := schema.get("discriminator"):  # it selects one member
                selected = object_at(value).get(discriminator["propertyName"])
                reference, members = object_at(discriminator, "mapping").get(str(selected)), []
            definition = definitions.get(str(reference).rpartition("/")[2])
            counts[pair] += sum(count(member, value) for member in (*members, definition))
            properties = object_at(schema, "properties")
            other_schemas = [schema.get("items"), schema.get("additionalProperties"), *schema.get("prefixItems", ())]
            for key, item in enumerate(value) if isinstance(value, list) else object_at(value).items():
                # The key may be an alias of any field
                by_alias = properties.values() if isinstance(item, dict | list) else ()
                candidates = [properties[str(key)]] if str(key) in properties else [*other_schemas, *by_alias]
                counts[pair] += sum(count(candidate, item) for candidate in candidates)
        if max(counts[pair], len(counts)) > _MAX_STEPS:
            raise TooManySteps
        return counts[pair]

    count(schema, value)


def parse_json_answer(text: str) -> Any:
    """Parse an answer as JSON. Raise SchemaMismatch if it is not JSON."""
    try:
        return parse_json(_only_json(text))
    except ValueError as error:
        raise _mismatch_error("the answer is not JSON", f"it is not JSON ({error})") from None


def _mismatch_error(what: str, reason: str) -> SchemaMismatch:
    """Return a SchemaMismatch. ``what`` is its message, without text of the answer.

    ``reason`` is the fault in detail, for the model. It may quote the answer.
    """
    error = SchemaMismatch(what)
    error.reason = printable(reason, _MAX_REASON_CHARS)
    return error


def _only_json(text: str) -> str:
    """Return the only object or list in an answer, without sentences and a Markdown fence around it.

    Return the whole answer if it contains no object or list, several different ones, or an incomplete one.
    """
    answer = text.strip().removeprefix("\ufeff").strip()
    candidates, end = set[str](), 0
    while answer[:1] != '"' and (start := _JSON_START.search(answer, end)):  # braces in a JSON string are text
        try:
            end = _DECODER.raw_decode(answer, start.start())[1]
        except (ValueError, RecursionError):
            return answer
        candidates.add(answer[start.start() : end])
    return candidates.pop() if len(candidates) == 1 else answer


def _validation_failed_error(schema: str, error: Exception) -> SchemaMismatch:
    """Return a SchemaMismatch for an answer that cannot be validated. ``schema`` is the name of the schema."""
    what = f"the answer cannot be validated against {schema} ({type(error).__name__})"
    return _mismatch_error(what, what)

"""Validation of an answer takes a bounded number of steps, whatever the answer and the schema are."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as FirstBaseModel

from learnflow.llm import errors
from learnflow.llm.adapter import structured_output

REGEX = r"^(\w+\s?)*$"  # takes exponential time for SLOW
SLOW = "a" * 40 + "!"


def schema(content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": content}}


def kind(field: str) -> dict[str, Any]:
    return {"type": "object", "properties": {"child": {"$ref": "#/$defs/node"}}, "required": [field]}


RECURSIVE = schema(
    {"$ref": "#/$defs/node", "$defs": {"node": {"anyOf": [*map(kind, ("a", "b", "c")), {"type": "null"}]}}}
)


class First(BaseModel):
    child: First | Second | Third | None = None
    a: int


class Second(BaseModel):
    child: First | Second | Third | None = None
    b: int


class Third(BaseModel):
    child: First | Second | Third | None = Field(None, alias="nested", validate_default=True)
    c: int
    model_config = {"validate_by_name": True, "validate_by_alias": True}


class Root(BaseModel):
    child: First | Second | Third


class Sum(BaseModel):
    kind: Literal["sum"]
    left: Expression
    right: Expression


class Product(BaseModel):
    kind: Literal["product"]
    left: Expression
    right: Expression


class Number(BaseModel):
    kind: Literal["number"]


Expression = Annotated[Sum | Product | Number, Field(discriminator="kind")]
for model in (First, Second, Third, Root, Sum, Product):
    model.model_rebuild()


def nested(depth: int, leaf: object = None, field: str = "child") -> Any:
    for _ in range(depth):
        leaf = {"c": 1, field: leaf}
    return leaf


def test_valid_answer_to_recursive_union_is_accepted_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cached results it takes 3^60 steps."""
    monkeypatch.setattr(structured_output, "_MAX_STEPS", 2_000)
    answer = nested(60)
    assert structured_output.parse(RECURSIVE, json.dumps(answer)) == answer


def test_invalid_answer_to_recursive_union_is_rejected_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured_output, "_MAX_STEPS", 10_000)
    with pytest.raises(errors.SchemaMismatch, match="does not match the JSON schema"):
        structured_output.parse(RECURSIVE, json.dumps(nested(60, 7)))


@pytest.mark.parametrize("depth", [100, 300, 900])
def test_deep_answer_to_recursive_schema_is_rejected(depth: int) -> None:
    """A RecursionError inside jsonschema's dependency rpds would end in a panic, which is no Exception."""
    with pytest.raises(errors.SchemaMismatch, match="cannot be validated"):
        structured_output.parse(RECURSIVE, '{"c": 1, "child": ' * depth + "null" + "}" * depth)


def test_schema_that_refers_to_itself_is_no_panic() -> None:
    with pytest.raises(errors.SchemaMismatch, match="cannot be validated"):
        structured_output.parse(schema({"$ref": "#"}), "{}")


STRICT = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ({"items": {"enum": [f"k{n}" for n in range(3_000)]}}, [f"k{n % 3_000}" for n in range(20_000)]),
        ({"items": {"enum": [f"k{n}" for n in range(3_000)]}}, ["wrong"] * 20_000),
        ({"anyOf": [{**STRICT, "minProperties": n} for n in range(100)]}, {f"k{n}": n for n in range(50_000)}),
        ({"allOf": [{"type": "string"}] * 2_000}, list(range(50_000))),
        ({"items": {"anyOf": [{"type": "string", "minLength": n} for n in range(100)]}}, list(range(20_000))),
        ({"items": {"contains": {"const": 1}}}, [[0] * 100] * 900),
    ],
    ids=["enum", "wrong enum", "strict objects", "quoted answer", "union", "contains"],
)
def test_answer_that_takes_too_many_steps_is_rejected(content: dict[str, Any], answer: object) -> None:
    with pytest.raises(errors.SchemaMismatch) as caught:
        structured_output.parse(schema(content), json.dumps(answer))
    assert len(caught.value.reason) <= 1_001
    assert "k1" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"properties": {"v": {"pattern": REGEX}}},
        {"properties": {"v": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": REGEX}}},
        {"$ref": "#/$defs/x", "$defs": {"x": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": REGEX}}},
        {"propertyNames": {"$schema": "https://json-schema.org/draft/2019-09/schema", "pattern": REGEX}},
        {"patternProperties": {REGEX: {}}, "additionalProperties": False},
        {"patternProperties": {REGEX: {}}, "unevaluatedProperties": False},
        {"allOf": [{"patternProperties": {REGEX: {}}}], "unevaluatedProperties": False},
        {"properties": {"v": {"format": "regex"}}},
    ],
)
@pytest.mark.parametrize("answer", [{"v": SLOW}, {SLOW: 1}], ids=["value", "name"])
@pytest.mark.parametrize(
    "draft", ["https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"]
)
def test_regular_expressions_are_not_matched(content: dict[str, Any], answer: dict[str, Any], draft: str) -> None:
    """Otherwise this test does not end."""
    text = json.dumps(answer)
    assert structured_output.parse(schema({"$schema": draft, **content}), text) == answer


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ({"additionalProperties": False}, {"a": 1}),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "not": {"type": "object"}}, {}),
        ({"items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"const": 1}}}, [1, 1, 2]),
        ({"if": {"type": "object"}, "then": {"required": ["a"]}}, {}),
        ({"prefixItems": [{"type": "string"}], "items": False}, ["x", 1]),
        ({"enum": [1, "a", [1]]}, [True]),
    ],
)
def test_other_keywords_are_validated(content: dict[str, Any], answer: object) -> None:
    with pytest.raises(errors.SchemaMismatch, match="does not match the JSON schema"):
        structured_output.parse(schema(content), json.dumps(answer))


def test_mismatch_names_the_place_below_a_union() -> None:
    items = {"anyOf": [{"type": "object", "properties": {"a": {"type": "string"}}}, {"type": "null"}]}
    with pytest.raises(errors.SchemaMismatch) as caught:
        structured_output.parse(schema({"properties": {"rows": {"items": items}}}), '{"rows": [{"a": "x"}, {"a": 1}]}')
    assert caught.value.reason.startswith("$.rows[1].a: 1 is not of type 'string'")


@pytest.mark.parametrize("field", ["child", "nested"])
@pytest.mark.parametrize("leaf", [None, 7], ids=["valid", "invalid"])
def test_class_with_recursive_union_rejects_deep_answer(field: str, leaf: object) -> None:
    """pydantic would validate it 3^60 times."""
    with pytest.raises(errors.SchemaMismatch, match=r"cannot be validated against Root \(TooManySteps\)"):
        structured_output.parse(Root, json.dumps({"child": nested(60, leaf, field)}))


def test_class_with_recursive_union_accepts_usual_answer() -> None:
    assert structured_output.parse(Root, json.dumps({"child": nested(6)})).child.c == 1


def test_class_with_discriminator_accepts_deep_answer() -> None:
    answer: dict[str, Any] = {"kind": "number"}
    for _ in range(40):
        answer = {"kind": "sum", "left": answer, "right": {"kind": "number"}}
    assert structured_output.parse(Sum, json.dumps(answer)).right.kind == "number"


class Rows(BaseModel):
    rows: list[int | None]


class Words(BaseModel):
    words: list[Literal[tuple(f"k{n}" for n in range(3_000))]]  # type: ignore[misc]


class Deep(BaseModel):
    child: Deep | None = None


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (Rows, '{"rows": [' + "[]," * 500_000 + "1]}"),
        (Rows, '{"rows": [' + "[]," * 20_000 + "1]}"),
        (Words, json.dumps({"words": ["x"] * 20_000})),
        (Deep, '{"child":' * 100_000 + "1" + "}" * 100_000),
        (Deep, '{"child":' * 900 + "1" + "}" * 900),
        (Rows, '{"rows": [' + "9" * 100_000 + "]}"),
    ],
    ids=["too many values", "many faults", "long union", "very deep", "deep", "digits"],
)
def test_class_rejects_hostile_answer_with_short_reason(wanted: type[BaseModel], text: str) -> None:
    with pytest.raises(errors.SchemaMismatch) as caught:
        structured_output.parse(wanted, text)
    assert 0 < len(caught.value.reason) <= 1_001
    assert len(str(caught.value)) < 200


class Old(FirstBaseModel):
    child: Old | None


def test_steps_of_class_of_pydantic_1_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured_output, "_MAX_STEPS", 50)
    Old.update_forward_refs()
    structured_output.check_step_count(Old.schema(), nested(5))
    with pytest.raises(structured_output.TooManySteps):
        structured_output.check_step_count(Old.schema(), nested(60))

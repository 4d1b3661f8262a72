"""Decoding of untrusted values into dataclasses."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from rnn_edge.schema import SchemaError, decode, encode


@dataclass(frozen=True)
class Inner:
    width: int
    scale: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: Inner
    many: tuple[Inner, ...] = ()
    table: dict[str, Inner] = field(default_factory=dict)
    maybe: int | None = None
    switch: bool = False


GOOD: dict[str, Any] = {"name": "n", "kind": "a", "inner": {"width": 3}}


def test_nested_values_and_defaults() -> None:
    value = GOOD | {"many": [{"width": 1}, {"width": 2, "scale": 3}], "table": {"x": {"width": 4}}, "maybe": 5}
    expected = Outer("n", "a", Inner(3), (Inner(1), Inner(2, 3.0)), {"x": Inner(4)}, 5)
    decoded = decode(Outer, value, strict=True)
    assert decoded == expected
    assert type(decoded.many[1].scale) is float


def test_encode_is_the_inverse() -> None:
    value = Outer("n", "b", Inner(3), (Inner(1),), {"x": Inner(4, 0.5)}, None, True)
    assert encode(value) == {
        "name": "n",
        "kind": "b",
        "inner": {"width": 3, "scale": 1.0},
        "many": [{"width": 1, "scale": 1.0}],
        "table": {"x": {"width": 4, "scale": 0.5}},
        "maybe": None,
        "switch": True,
    }
    assert decode(Outer, encode(value), strict=True) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "name is an integer, not a string"),
        ({"name": None}, "name is null, not a string"),
        ({"kind": "c"}, "kind is 'c', not one of a, b"),
        ({"kind": []}, "kind is [], not one of a, b"),
        ({"inner": []}, "inner is a list, not a table"),
        ({"inner": {}}, "inner.width is missing"),
        ({"inner": {"width": 1.0}}, "inner.width is a number, not an integer"),
        ({"inner": {"width": True}}, "inner.width is true or false, not an integer"),
        ({"inner": {"width": 1, "scale": math.nan}}, "inner.scale is not a finite number"),
        ({"inner": {"width": 1, "scale": math.inf}}, "inner.scale is not a finite number"),
        ({"inner": {"width": 1, "scale": False}}, "inner.scale is true or false, not a number"),
        ({"many": "text"}, "many is a string, not a list"),
        ({"many": [{"width": 1}, {}]}, "many[1].width is missing"),
        ({"table": {"x": {"width": "1"}}}, "table.x.width is a string, not an integer"),
        ({"table": [1]}, "table is a list, not a table"),
        ({"maybe": "1"}, "maybe is a string, not an integer"),
        ({"switch": 1}, "switch is an integer, not true or false"),
    ],
)
def test_the_place_of_a_mistake_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        decode(Outer, GOOD | change, strict=False)
    assert str(caught.value) == message


def test_a_number_too_large_for_a_float_is_a_mistake_like_any_other() -> None:
    with pytest.raises(SchemaError, match=r"inner\.scale"):
        decode(Outer, GOOD | {"inner": {"width": 1, "scale": 10**400}}, strict=False)


def test_the_top_level_must_be_a_table() -> None:
    with pytest.raises(SchemaError, match="the top level is a list"):
        decode(Outer, [], strict=False)


def test_unknown_keys() -> None:
    value = GOOD | {"inner": {"width": 1, "scales": 2.0}}
    assert decode(Outer, value, strict=False).inner == Inner(1)
    with pytest.raises(SchemaError) as caught:
        decode(Outer, value, strict=True)
    assert str(caught.value) == "inner.scales is not a known key; did you mean scale?"
    with pytest.raises(SchemaError) as caught:
        decode(Outer, GOOD | {"zzz": 1}, strict=True)
    assert str(caught.value) == "zzz is not a known key"

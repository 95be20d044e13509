from __future__ import annotations

import pytest

from c2c.compiler.names import identifier, model_identifier, unique_identifiers


@pytest.mark.parametrize(
    ("text", "name"),
    [("input", "input"), ("serving_input_2:0", "serving_input_2_0"), ("1x", "_1x"), ("/", "x"), ("é", "x")],
)
def test_identifier(text: str, name: str) -> None:
    assert identifier(text) == name


def test_unique_identifiers_keep_order_and_avoid_words_of_c() -> None:
    assert unique_identifiers(["a.b", "a:b", "float", "arena", "a.b"]) == ["a_b", "a_b_1", "float_", "arena_", "a_b_2"]


def test_identifiers_differ_in_upper_case_and_from_macros() -> None:
    assert unique_identifiers(["x", "X", "x_1", "linux"]) == ["x", "X_1", "x_1_1", "linux_"]


def test_a_model_keeps_off_the_files_of_its_bundle() -> None:
    assert [model_identifier(t) for t in ("example", "c2c_runtime", "Example", "net")] == [
        "example_model", "c2c_runtime_model", "Example_model", "net",
    ]  # fmt: skip

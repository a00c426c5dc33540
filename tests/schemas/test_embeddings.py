"""What an embedding may be: ids that the views can cast, lengths whose squares float32 can hold."""

import numpy as np
import pytest

from beamrec.schemas.embeddings import MAX_LENGTH, expected_length, search_operator, wrong_id, wrong_lengths


@pytest.mark.parametrize("key", ["0", "-7", "9223372036854775807", "-9223372036854775808"])
def test_integers_in_their_shortest_form_are_ids(key: str) -> None:
    assert wrong_id(key, "int") is None


@pytest.mark.parametrize(
    "key", ["99999999999999999999", "9223372036854775808", "٧", "007", "-0", "+1", " 1", "1.0", "S7", ""]
)
def test_what_is_no_integer_or_has_two_spellings_is_none(key: str) -> None:
    assert wrong_id(key, "int")


@pytest.mark.parametrize(("key", "usable"), [("☃" * 333, True), ("☃" * 334, False), ("n\0l", False)])
def test_ids_of_text_fit_into_an_index(key: str, usable: bool) -> None:
    assert (wrong_id(key, "string") is None) == usable


def test_lengths_are_one_or_such_that_their_squares_fit_into_float32() -> None:
    lengths = np.array([0, 1, 1.0005, 1.002, MAX_LENGTH, 1e20, np.nan, np.inf])
    assert np.isfinite(np.float32(MAX_LENGTH) ** 2)
    assert np.flatnonzero(wrong_lengths(lengths, True, "<->")).tolist() == [0, 3, 4, 5, 6, 7]
    assert np.flatnonzero(wrong_lengths(lengths, False, "<->")).tolist() == [5, 6, 7]
    assert np.flatnonzero(wrong_lengths(lengths, False, "<=>")).tolist() == [0, 5, 6, 7]
    assert expected_length(False, "<=>") == "a length above 0 and of at most 1e+18"
    assert expected_length(False, "<->") == "a length of at most 1e+18"


def test_scores_are_inner_products_unless_every_operator_ranks_alike() -> None:
    assert [search_operator(o, True) for o in ("<->", "<=>")] == ["<->", "<=>"]
    assert [search_operator(o, False) for o in ("<->", "<=>")] == ["<#>", "<#>"]

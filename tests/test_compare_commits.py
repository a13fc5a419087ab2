"""The comparison of two commits, without their training."""

import numpy as np

from scripts.compare_commits import CASES, compare, copy_tree

WEIGHT = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
BIAS = np.array([0.5, -0.5], np.float32)


def test_the_same_arrays_are_equal():
    result = compare({"weight": WEIGHT, "bias": BIAS}, {"bias": BIAS.copy(), "weight": WEIGHT.copy()})
    assert (result.num_equal, result.differences, result.notes) == (2, [], [])


def test_the_same_content_under_another_name_is_a_rename_and_equal():
    result = compare({"weight": WEIGHT, "bias": BIAS}, {"body.weight": WEIGHT, "bias": BIAS})
    assert (result.num_equal, result.differences) == (2, [])
    assert result.notes == ["weight is now body.weight"]


def test_two_arrays_of_the_same_content_are_renamed_to_one_each():
    result = compare({"a": BIAS, "b": BIAS}, {"c": BIAS})
    assert result.notes == ["a is now c"]
    assert result.differences == ["b is only in the old commit"]


def test_what_only_the_new_commit_has_is_reported_and_no_difference():
    result = compare({"bias": BIAS}, {"bias": BIAS, "weight": WEIGHT})
    assert (result.differences, result.notes) == ([], ["weight is only in the new commit"])


def test_a_difference_names_the_array_and_its_largest_gap():
    assert compare({"bias": BIAS}, {"bias": BIAS + np.float32([0.0, 0.25])}).differences == ["bias by up to 0.25"]


def test_a_unit_in_the_last_place_is_a_difference():
    assert compare({"bias": BIAS}, {"bias": np.nextafter(BIAS, np.float32(1.0))}).differences


def test_another_shape_or_type_is_a_difference():
    (shape,) = compare({"bias": BIAS}, {"bias": BIAS[None]}).differences
    (dtype,) = compare({"bias": BIAS}, {"bias": BIAS.astype(np.float64)}).differences
    assert shape == "bias was float32 [2] and is float32 [1, 2]"
    assert dtype == "bias was float32 [2] and is float64 [2]"


def test_an_empty_cell_equals_an_empty_cell_and_no_number():
    empty, number = np.array([np.nan, 1.0]), np.array([0.0, 1.0])
    assert compare({"column": empty}, {"column": empty.copy()}).num_equal == 1
    assert compare({"column": empty}, {"column": number}).differences == ["column by up to nan"]


def test_every_preset_is_compared_on_one_rank_and_on_two():
    assert sorted(CASES) == sorted(f"{name}-{n}" for name in ("atari", "paper", "cleanrl", "classic") for n in (1, 2))


def test_the_working_tree_is_copied_without_what_git_ignores(tmp_path):
    copy_tree(tmp_path / "tree", None)
    assert (tmp_path / "tree/scripts/compare_commits.py").exists()
    assert not list((tmp_path / "tree").rglob("*.so"))

"""Paths: what can be a name, and what a glob means."""

import pickle

import pytest

import axonlike as al
from axonlike.errors import ShapeError, nearest
from axonlike.paths import check_name, join, pattern


@pytest.mark.parametrize(
    "name", ["dense", "dense_1", "w2", "2w", "größe", "a.b", "a b"]
)
def test_names_that_serve(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", None, 3, b"dense", ("a",)])
def test_a_name_is_text(name):
    with pytest.raises(TypeError, match="name: expected a non-empty str, got"):
        check_name(name)


@pytest.mark.parametrize("letter", "/*{}#")
def test_a_name_holds_nothing_that_paths_need(letter):
    with pytest.raises(ValueError, match="which paths need"):
        check_name(f"a{letter}b")


@pytest.mark.parametrize("name", ["0", "12", "007"])
def test_a_name_is_no_index(name):
    with pytest.raises(ValueError, match="all digits"):
        check_name(name)


def test_a_name_is_no_keyword_of_the_constructor():
    assert check_name("width", ("features", "name")) == "width"
    with pytest.raises(ValueError, match="a keyword of the constructor"):
        check_name("features", ("features", "name"))
    with pytest.raises(ValueError, match="a keyword of the constructor"):
        al.dense(3, name="features")


def test_join_leaves_out_empty_steps():
    assert join("a", "", "b", "c") == "a/b/c"
    assert join("", "") == ""


@pytest.mark.parametrize(
    ("glob", "path", "means"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("a", "a/b", False),
        ("*", "a", True),
        ("*", "a/b", False),
        ("a*", "attn", True),
        ("a*", "attn/q", False),
        ("*/q", "attn/q", True),
        ("*/q", "a/attn/q", False),
        ("**/q", "q", True),
        ("**/q", "a/b/q", True),
        ("**/q", "a/bq", False),
        ("a/**", "a/b/c", True),
        ("a/**", "ab/c", False),
        ("**", "a/b/c", True),
        ("a/**/z", "a/z", True),
        ("a/**/z", "a/b/c/z", True),
        ("a/**/z", "a/bz", False),
        ("{a,b}/q", "b/q", True),
        ("{a,b}/q", "c/q", False),
        ("x_{1,2}", "x_2", True),
        ("{a,b}*", "b_1", True),
        ("a.c", "abc", False),
        ("a+b", "a+b", True),
        ("blocks/*/w", "blocks/*/w", True),
        ("blocks/3/w", "blocks/3/w", True),
    ],
)
def test_a_glob_means_these_paths(glob, path, means):
    assert (pattern(glob).fullmatch(path) is not None) is means


def test_the_nearest_names_or_all_of_them():
    assert nearest("a", []) == "There are no names here."
    assert nearest("dense", ["dense_1", "conv"]) == "Nearest: 'dense_1'."
    assert nearest("zzz", ["dense_1", "conv"]) == "Known: 'dense_1', 'conv'."
    many = [f"layer{i}" for i in range(20)]
    assert nearest("zzz", many).endswith(" 'layer7' and 12 more.")


def test_our_errors_are_those_that_a_caller_expects_and_survive_pickle():
    path, shape = al.PathError("part", "a", ["b"]), ShapeError("dense", "x", "y", "Z.")
    assert isinstance(path, KeyError)
    assert isinstance(shape, ValueError)
    assert (shape.where, shape.expected, shape.got) == ("dense", "x", "y")
    for error in (path, shape):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
    assert str(shape) == "dense: expected x, got y. Z."
    assert str(ShapeError("dense", "x", "y")) == "dense: expected x, got y."

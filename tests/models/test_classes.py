from pathlib import Path

import numpy as np
import pytest
from helpers.refusals import refused

from fastkd.errors import MismatchError
from fastkd.models.classes import (
    Classes,
    ClassMap,
    imagenet_wnids,
    known_names,
    match_classes,
    names_fingerprint,
    read_class_map,
    require_same_names,
)

WNIDS = list(imagenet_wnids())


def classes(names: list[str] | None, count: int | None = None, where: str = "x.beton") -> Classes:
    return Classes(where=where, count=len(names or []) if count is None else count, names=names)


def words() -> list[str]:
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.DEFAULT.meta["categories"])


@pytest.mark.parametrize(
    "names",
    [None, [], "abc", 3, ["a", 3], ["0"], ["0", "1", "2"], ["a", "b", "a"], {"a": 0}],
)
def test_names_that_tell_no_classes_apart_count_as_none(names):
    assert known_names(names) is None
    assert names_fingerprint(names) == {}


@pytest.mark.parametrize(
    "names", [["a"], ["b", "a"], ["1", "0"], ["0", "1", "10", "2"], ["é", "x y", "1"], WNIDS, WNIDS[:7]]
)
def test_other_names_are_known_as_they_are(names):
    assert known_names(names) == tuple(names)


def test_the_wnids_are_those_of_imagenet():
    assert len(set(WNIDS)) == 1000
    assert sorted(WNIDS) == WNIDS
    assert (WNIDS[0], WNIDS[207], WNIDS[999]) == ("n01440764", "n02099601", "n15075141")


def test_torchvisions_words_are_known_as_the_wnids():
    assert known_names(words()) == tuple(WNIDS)
    assert known_names(words()[::-1]) != tuple(WNIDS)[::-1]
    assert match_classes(classes(words()), classes(WNIDS)) == (None, "")


def test_a_word_may_stand_in_a_map_for_its_wnid():
    mapped, _ = match_classes(
        classes(["pet", "n01443537"]), classes(words(), where="t"), ClassMap(source="m", targets={"pet": "tench"})
    )
    assert mapped is not None
    assert mapped.tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_any_choice_in_any_order_goes_to_the_outputs_of_its_names(seed):
    rng = np.random.default_rng(seed)
    theirs = [f"class {i}" for i in rng.permutation(50)]
    ours = [theirs[i] for i in rng.permutation(50)[: rng.integers(2, 50)]]
    mapped, line = match_classes(classes(ours), classes(theirs, where="t"))
    assert mapped is not None
    assert mapped.dtype == np.int64
    assert [theirs[i] for i in mapped] == ours
    assert "mapped by name" in line
    assert "why" in refused(MismatchError, match_classes, classes(ours), classes(theirs), one_order="why")


def test_names_of_another_number_than_the_outputs_are_not_known():
    assert match_classes(classes(["a", "b"]), classes(["a"], count=2, where="t"))[1].startswith(
        "class names are not known of t"
    )


def test_many_names_are_told_by_some_and_their_number():
    message = refused(MismatchError, match_classes, classes([f"a{i}" for i in range(300)]), classes(WNIDS, where="t"))
    assert "'a0', 'a1', 'a2', 'a3', … (300 in all) of its 300 classes are not among the 1000 of t" in message
    assert len(message) < 400


def test_a_network_with_repeats_takes_a_map_of_numbers_and_of_the_names_that_are_its_own():
    theirs = classes(["crane", "dog", "crane"], where="t")
    mapped, _ = match_classes(classes(["bird", "pet"]), theirs, ClassMap(source="m", targets={"bird": 2, "pet": "dog"}))
    assert mapped is not None
    assert mapped.tolist() == [2, 1]
    twice = ClassMap(source="m", targets={"bird": "crane", "pet": "dog"})
    assert "'crane', which is no class of t" in refused(
        MismatchError, match_classes, classes(["bird", "pet"]), theirs, twice
    )


def test_a_map_of_names_needs_names_in_the_network():
    named = ClassMap(source="m", targets={"a": "b"})
    assert "give numbers" in refused(MismatchError, match_classes, classes(["a"]), classes(None, 3), named)


def test_lines_of_a_map_that_name_no_class_are_counted():
    found = ClassMap(source="m", targets={"c": "b", "x": 0, "y": 1})
    assert "2 of its lines name no class" in match_classes(classes(["c", "a"]), classes(["a", "b"]), found)[1]


def test_a_map_has_the_fingerprint_of_what_it_says_not_of_how(tmp_path: Path):
    texts = ['a = "x"\nb = 3', '# said\n"b" = 3\n\n"a" = "x"', 'a = "x"\nb = 4', 'a = "x"\nb = "3"']
    found = []
    for i, text in enumerate(texts):
        (tmp_path / str(i)).write_text(text)
        read = read_class_map(str(tmp_path / str(i)))
        assert read is not None
        found.append(read.identity())
    assert found[0] == found[1]
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("then", "now", "taken"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a", "b"], ["b", "a"], False),
        (["a", "b"], ["a", "c"], False),
        (["a", "b"], ["0", "1"], True),
        (None, ["a", "b"], True),
        (["a", "b"], None, True),
    ],
)
def test_an_artefact_is_of_the_names_it_was_made_under_where_both_are_known(then, now, taken):
    arguments = (names_fingerprint(then), "s.h5", now, "x.beton", "make it again")
    if taken:
        require_same_names(*arguments)
    else:
        assert "make it again" in refused(MismatchError, require_same_names, *arguments)

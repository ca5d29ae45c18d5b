"""ImageNet's folders meet torchvision's networks by WordNet's numbers and by words."""

from pathlib import Path

import pytest
from helpers.class_names import ANY_ORDER, called, run, told

from fastkd.models.classes import imagenet_wnids
from fastkd.models.registry import create_model

WNIDS = imagenet_wnids()


@pytest.fixture
def published(monkeypatch) -> None:
    """torchvision's resnet18, with fresh weights in the place of those that it downloads."""
    state = create_model("resnet18", 1000).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: state)


def imagenet_data(data: dict[str, Path], path: Path, names: list[str]) -> Path:
    return called(data["same"], path, names)


@pytest.mark.parametrize("command", ["evaluate", "score", "cache-logits", "train --teacher"])
@pytest.mark.parametrize("names", ["wnids", "words", "some", "turned", "wrong"])
def test_imagenet_folders_meet_torchvisions_networks_without_an_option(command, names, data, published, tmp_path):
    from torchvision.models import ResNet18_Weights

    lists = {
        "wnids": list(WNIDS),
        "words": ResNet18_Weights.DEFAULT.meta["categories"],
        "some": list(WNIDS[3:900:100]),
        "turned": list(WNIDS[::-1]),
        "wrong": [*WNIDS[:-1], "n99999999"],
    }
    beton = imagenet_data(data, tmp_path / "x.beton", lists[names])
    outcome = run(command, beton, "resnet18", data, tmp_path / "out")
    taken = names in ("wnids", "words") or (names in ("some", "turned") and command in ANY_ORDER)
    assert outcome.code == (0 if taken else 1), outcome.err
    if names in ("wnids", "words"):
        assert told(outcome) == ""
    if names == "wrong":
        assert "'n99999999' of its 1000 classes is not among the 1000 of resnet18" in outcome.err

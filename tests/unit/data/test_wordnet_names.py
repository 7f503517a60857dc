"""Classes named by WordNet ids get words as prompt names, different for each, and keep their ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gda.artifacts.outcome import Outcome
from gda.cli.main import main
from gda.data.imagenet import wordnet
from gda.data.imagenet.wordnet import is_wordnet_id, wordnet_names
from gda.data.store.snapshot import Snapshot
from gda.errors import MissingError


def names_of(*wordnet_ids: str) -> list[str]:
    found = wordnet_names(wordnet_ids)
    assert found is not None
    return [info.prompt_name for info in found.classes]


def test_the_first_word_is_taken() -> None:
    """Guards plain cases: the first of WordNet's words, in the order of the ids, hyphens and apostrophes as they are."""
    assert names_of("n02110958", "n01440764", "n03595614", "n02441942") == ["tench", "pug", "weasel", "jersey"]
    assert names_of("n02443484", "n03590841") == ["black-footed ferret", "jack-o'-lantern"]


@pytest.mark.parametrize(
    ("wordnet_ids", "names"),
    [
        (("n02012849",), ["crane"]),
        (
            ("n02012849", "n03126707"),
            [
                "crane, large long-necked wading bird of marshes and plains in many parts of the world",
                "crane, lifts and moves heavy objects",
            ],
        ),
        (("n03710637", "n03710721"), ["maillot, tights for dancers or gymnasts", "maillot, tank suit"]),
        (
            ("n02113186", "n02963159"),
            ["Cardigan, Cardigan Welsh corgi", "cardigan, knitted jacket that is fastened up the front with buttons or a zipper"],
        ),
    ],
)
def test_shared_words_are_distinguished(wordnet_ids: tuple[str, ...], names: list[str]) -> None:
    """Guards the pairs of ImageNet that share a word: distinguished by more words or the meaning, only where both are present."""
    assert names_of(*wordnet_ids) == names
    assert names_of(*reversed(wordnet_ids)) == names


@pytest.mark.parametrize("listed", ["imagenet_synsets.txt", "imagenet22k_synsets.txt"])
def test_all_of_imagenet(listed: str) -> None:
    """Guards ImageNet-1k and -22k as a whole: every class has a name of its own, in the order of the ids, and none lacks words."""
    path = Path(wordnet.find_spec("timm").origin).parent / "data" / "_info" / listed  # type: ignore[union-attr,arg-type,attr-defined]
    ids = path.read_text().split()
    found = wordnet_names(ids)
    assert found is not None
    assert [info.name for info in found.classes] == sorted(ids)
    assert len({info.prompt_name.casefold() for info in found.classes}) == len(ids)
    assert found.unknown == ()


def test_lists_are_those_of_timm() -> None:
    """Guards our reading of timm's files against its own."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    for name in info.label_names()[::100]:
        assert wordnet._list(wordnet._LEMMAS)[name] == info.label_name_to_description(name)


def test_unknown_ids_are_kept() -> None:
    """Guards ids that timm does not know: they stay as they are, and are reported."""
    found = wordnet_names(["n01440764", "n99999999"])
    assert found is not None
    assert [info.prompt_name for info in found.classes] == ["tench", "n99999999"]
    assert found.message.endswith("such as 'tench' for n01440764; without words, and called by the id: n99999999")
    nothing = wordnet_names(["n99999998", "n99999999"])
    assert nothing is not None
    assert nothing.message.endswith("none of the ids is known")


@pytest.mark.parametrize("names", [[], ["tench", "goldfish"], ["n01440764", "goldfish"], ["n1440764", "n01443537"]])
def test_other_names_are_left_alone(names: list[str]) -> None:
    """Guards sets with a class that is no WordNet id: nothing is renamed."""
    assert wordnet_names(names) is None
    assert not all(map(is_wordnet_id, names)) or not names


def test_missing_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards another timm, without the lists: one line with the file and the field that does without."""
    monkeypatch.setattr(wordnet, "_LEMMAS", "gone.txt")
    with pytest.raises(MissingError, match=r"gone.txt: not found: .* set snapshot.class_names to source"):
        wordnet_names(["n01440764"])


def test_the_snapshot_keeps_ids_and_says_words(image_folder: Any, take: Callable[..., Outcome]) -> None:
    """Guards the stage: classes are the ids in their order, prompts use words, the closing line says so, and the field undoes it."""
    splits = {f"{split}/{name}": 2 for split in ("train", "val", "test") for name in ("n01443537", "n01440764")}
    source = image_folder(splits)
    outcome = take(source)
    snapshot = Snapshot.open(outcome.output)
    assert [(info.name, info.prompt_name) for info in snapshot.classes] == [("n01440764", "tench"), ("n01443537", "goldfish")]
    assert "; prompts call the classes by WordNet's words for their ids, such as 'tench' for n01440764" in outcome.summary
    assert snapshot.index.provenance["class_names"] in outcome.summary
    plain = take(source, "plain", class_names="source")
    assert [info.prompt_name for info in Snapshot.open(plain.output).classes] == ["n01440764", "n01443537"]
    assert "WordNet" not in plain.summary
    assert plain.digest != outcome.digest


def test_the_field_is_of_no_account_elsewhere(image_folder: Any, take: Callable[..., Outcome]) -> None:
    """Guards other sets: the same output for either value of the field, and found up to date."""
    source = image_folder({"cat": 12, "dog": 12})
    assert not take(source).reused
    assert take(source, class_names="source").reused


def test_renaming_is_another_piece_of_work(image_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards an output made with the other value: it is not taken for up to date."""
    source = image_folder({f"{split}/{name}": 2 for split in ("train", "val", "test") for name in ("n01443537", "n01440764")})
    common = ["snapshot", str(source), "--out", str(tmp_path / "out"), "--set"]
    assert main([*common, "snapshot.class_names=source"]) == 0
    assert main([*common, "snapshot.class_names=wordnet"]) == 2
    assert "inputs.class_names" in capsys.readouterr().err
    assert main([*common, "snapshot.class_names=words"]) == 2
    assert "snapshot.class_names" in capsys.readouterr().err

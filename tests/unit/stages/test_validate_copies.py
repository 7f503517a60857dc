"""validate: copies in disguise, repeated training pictures, duplicates inside a set, and the network made for copies."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import CHANGES
from PIL import Image
from validation_sets import COUNTS, PER_CLASS, Item, changed, items, tiny_config, with_pixels, write_set

from gda.artifacts.document import read_document
from gda.artifacts.verdict import Verdict
from gda.data.images.codecs import decode, to_array
from gda.errors import MissingError
from gda.io.shards import read_shard
from gda.stages import reference, validate

REPEATED, TIMES = 4, 12  # the first training pictures, one per class, are there so often


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real set in which some training pictures are repeated, re-encoded, and one of them is in val too; and its reference."""
    root = tmp_path_factory.mktemp("copies")
    splits = {split: items(count, seed) for seed, (split, count) in enumerate(COUNTS.items())}
    for time in range(TIMES):
        quality = 94 - time
        splits["train"] += [with_pixels(item, _encoded(item.rgb, quality)) for item in splits["train"][:REPEATED]]
    splits["val"].append(with_pixels(splits["train"][0], _encoded(splits["train"][0].rgb, 96)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        reference.run(tiny_config(), snapshot=write_set(root / "real", splits, kind="real"), out=root / "reference")
    return root


def _encoded(rgb: np.ndarray, quality: int) -> np.ndarray:
    from pictures import encoded

    return np.asarray(encoded("JPEG", quality)(Image.fromarray(rgb)))


@pytest.fixture
def assessed(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verdict]:
    """Write items as a synthetic set, validate it, return the verdict."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))

    def assess(content: Sequence[Item], out: str = "out", **section: object) -> Verdict:
        synthetic = tmp_path / "synthetic"
        if not synthetic.exists():
            write_set(synthetic, {"train": content})
        found = validate.run(
            tiny_config(**section), synthetic=synthetic, snapshot=world / "real", reference=world / "reference", out=tmp_path / out
        )
        return read_document(found.output / "verdict.json", Verdict)

    return assess


def sound() -> list[Item]:
    return items(PER_CLASS, 77)


def training(world: Path) -> list[np.ndarray]:
    return [to_array(decode(record.image, name=record.key)) for record in read_shard(world / "real" / "train-000000.tar")]


def failed(verdict: Verdict) -> set[str]:
    return {name for name, measure in verdict.metrics.items() if measure.passed is False}


def test_repeats_in_the_real_set_refuse_no_sound_set(assessed: Callable[..., Verdict]) -> None:
    """Real duplicates and a picture that train and val share are the real set's fault; they raise floors and leave a sound set alone."""
    verdict = assessed(sound())
    assert not failed(verdict) & {"copy_fraction", "near_duplicate_fraction", "near_val", "near_test"}
    assert verdict.metrics["near_duplicate_fraction"].floor > 0.2
    assert verdict.metrics["near_val"].floor > 0
    assert verdict.metrics["near_test"].floor == 0
    assert verdict.metrics["copy_fraction"].extractor.startswith("aligned + glyph@")


@pytest.mark.parametrize("change", ["crop 87%", "mirrored", "contrast 0.6"])
def test_copies_of_repeated_pictures_are_found_in_disguise(
    change: str, world: Path, tmp_path: Path, assessed: Callable[..., Verdict]
) -> None:
    """A picture repeated in train is what generators memorise: it must not hide among its own repeats, and the page shows the pair."""
    train = training(world)

    def copy(item: Item, place: int) -> Item:
        return with_pixels(item, np.asarray(CHANGES[change](Image.fromarray(train[place % REPEATED]))))

    verdict = assessed(changed(sound(), range(40), copy))
    assert "copy_fraction" in failed(verdict)
    assert verdict.metrics["copy_fraction"].value >= 0.3  # 40 of 120 were planted
    assert verdict.metrics["exact_train"].value == 0
    assert "Nearest training images" in (tmp_path / "out" / "index.html").read_text()


def test_a_set_that_repeats_itself_in_other_bytes_is_refused(tmp_path: Path, assessed: Callable[..., Verdict]) -> None:
    """No two images are equal, yet a third show four pictures: refused where real images do not, and the groups are shown."""
    content = sound()

    def repeat(item: Item, place: int) -> Item:
        return with_pixels(item, _encoded(content[place % 4].rgb, 95 - place // 4))

    verdict = assessed(changed(content, range(4, 44), repeat), max_near_duplicate_fraction=0.0)
    measure = verdict.metrics["near_duplicate_fraction"]
    assert verdict.metrics["duplicate_fraction"].value == 0
    assert measure.value == pytest.approx(44 / 120)
    assert measure.limit == measure.floor
    assert measure.passed == (measure.value <= measure.floor)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("11 images<br>") == 4
    assert "<h2>Duplicates</h2>" in page


class Averages(torch.nn.Module):
    """Stands for SSCD."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


@pytest.mark.filterwarnings("ignore")
def test_a_network_made_for_copies_takes_part(tmp_path: Path, assessed: Callable[..., Verdict]) -> None:
    """Its file is named by content in the verdict and by nothing else; the same file elsewhere is the same work; none is an error."""
    paths = [tmp_path / name / "sscd.pt" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
    torch.jit.trace(Averages(), torch.zeros(2, 3, 288, 288)).save(str(paths[0]))
    paths[1].write_bytes(paths[0].read_bytes())
    first, second = (assessed(sound(), out, sscd_weights=str(path)) for out, path in zip(("a", "b"), paths, strict=True))
    assert " + sscd@" in first.metrics["copy_fraction"].extractor
    assert first == second
    assert str(tmp_path) not in (tmp_path / "a" / "verdict.json").read_text()
    with pytest.raises(MissingError, match=r"validate\.sscd_weights"):
        assessed(sound(), "c", sscd_weights=str(tmp_path / "absent.pt"))

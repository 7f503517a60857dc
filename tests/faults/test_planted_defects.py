"""Every planted defect is refused, for its own reason; twenty sound sets pass, with the limits as they come."""

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from great_expectations.expectations.expectation import ColumnAggregateExpectation
from PIL import Image, ImageFilter
from validation_sets import CLASSES, SIZE, Item, as_jpeg, changed, items, rewrite_manifest, with_pixels, write_real, write_set

from gda.artifacts.document import read_document
from gda.artifacts.verdict import Verdict
from gda.cli.main import main
from gda.config.load import Config, dump_config, parse_config
from gda.data.images.codecs import decode, encode_png, to_array
from gda.errors import DataError
from gda.fidelity.intervals import Estimate
from gda.gate import expectations, inspection
from gda.generator.planning.plan import equal_quotas, make_plan
from gda.io.shards import read_shard
from gda.stages import reference, validate

PER_CLASS = 30
TOTAL = PER_CLASS * len(CLASSES)
# Enough held-out images for the copy check to tell a hundredth from five.
REAL_COUNTS = {"train": 20, "val": 60, "test": 20}


def plain_config(**sections: Any) -> Config:
    """Two folds of a small network for 16 px images; every limit of validation is the default."""
    content = {
        "reference": {"folds": 2, "num_train_steps": 40},
        "classify": {"image_size": SIZE, "batch_size": 32, "warmup_steps": 5},
    }
    return parse_config(content | sections, where="test")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`real` and its `reference`, shared by all; Data Docs, which other tests read, are left out for speed."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        patch.setattr(inspection, "check_structure", partial(inspection.check_structure, pages=False))
        reference.run(plain_config(), snapshot=write_real(root / "real", REAL_COUNTS), out=root / "reference")
        yield root


def assessed(world: Path, synthetic: Path, **options: Any) -> tuple[bool, Sequence[str]]:
    """Whether the set passed, and the reasons; of a set that is too damaged to be assessed, the error."""
    given: dict[str, Any] = {"config": plain_config(), "snapshot": world / "real", "reference": world / "reference"} | options
    out = synthetic.parent / "out"
    try:
        outcome = validate.run(given.pop("config"), synthetic=synthetic, out=out, **given)
    except DataError as error:
        assert not out.exists(), "a set that cannot be read was given a verdict"
        return False, [str(error)]
    verdict = read_document(outcome.output / "verdict.json", Verdict)
    assert outcome.refused == (not verdict.passed)
    assert verdict.passed == (not verdict.reasons)
    return verdict.passed, verdict.reasons


def sound(seed: int = 77) -> list[Item]:
    return items(PER_CLASS, seed)


def real_pixels(world: Path, split: str) -> list[np.ndarray]:
    """Images of a real split as stored; the class of image i is that of position i in `items`."""
    return [to_array(decode(record.image, name=record.key)) for record in read_shard(world / "real" / f"{split}-000000.tar", of_test=True)]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where a defect is planted: the shared world, a folder of its own, and a way to change the program itself."""

    world: Path
    folder: Path
    patch: pytest.MonkeyPatch

    def write(self, content: Sequence[Item], **options: Any) -> Path:
        return write_set(self.folder / "synthetic", {"train": content}, **options)

    def sound(self, **options: Any) -> Path:
        return self.write(sound(), **options)


Planted = Path | tuple[Path, dict[str, Any]]  # the set, and what is requested of validation beyond the usual
Plant = Callable[[Bench], Planted]


def of_items(change: Callable[[Bench, list[Item]], list[Item]], **options: Any) -> Plant:
    """A set of sound items after a change."""
    return lambda bench: bench.write(change(bench, sound()), **options)


def of_pixels(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Plant:
    """A set in which every picture went through a change."""

    def plant(bench: Bench, content: list[Item]) -> list[Item]:
        rng = np.random.default_rng(5)
        return [with_pixels(item, change(item.rgb, rng).astype(np.uint8)) for item in content]

    return of_items(plant)


def of_meta(positions: Sequence[int], **meta: Any) -> Plant:
    """A set in which some records say something else of how they were sampled."""
    return of_items(lambda bench, content: changed(content, positions, lambda item, place: replace(item, meta=item.meta | meta)))


def of_manifest(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Plant:
    """A set whose manifest says something else than its shards, with a checksum that vouches for it."""
    return lambda bench: rewrite_manifest(bench.sound(), change)


def of_shard(change: Callable[[bytes], bytes]) -> Plant:
    """A set with a shard whose bytes changed since it was committed."""

    def plant(bench: Bench) -> Path:
        path = bench.sound(shards=3) / "train-000001.tar"
        path.write_bytes(change(path.read_bytes()))
        return path.parent

    return plant


def from_split(split: str, count: int, disguise: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None) -> Plant:
    """A set in which `count` images are of a real split, each of the class that it is labelled as."""

    def plant(bench: Bench, content: list[Item]) -> list[Item]:
        pixels, rng = real_pixels(bench.world, split), np.random.default_rng(6)
        slipped = pixels if disguise is None else [disguise(rgb, rng) for rgb in pixels]
        return changed(content, range(count), lambda item, place: with_pixels(item, slipped[place % len(slipped)]))

    return of_items(plant)


def noisy(rgb: np.ndarray, rng: np.random.Generator, by: float = 6) -> np.ndarray:
    return np.clip(rgb + rng.normal(0, by, rgb.shape), 0, 255).astype(np.uint8)


def blurred(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(6)))


def grey(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(np.asarray(Image.fromarray(rgb).convert("L"))[:, :, None], 3, axis=2)


def striped(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture of another data set: its colours are of the class, what it shows is not."""
    stripes = np.where(np.arange(SIZE) // rng.integers(1, 4) % 2, 60, -60)
    across = stripes[:, None, None] if rng.random() < 0.5 else stripes[None, :, None]
    return np.clip(np.broadcast_to(rgb.mean((0, 1)), rgb.shape) + across, 0, 255)


def relabelled(content: list[Item], positions: Sequence[int]) -> list[Item]:
    return changed(content, positions, lambda item, place: replace(item, label=CLASSES[(CLASSES.index(item.label) + 1) % 4]))


def collapsed(content: list[Item], classes: Sequence[str], jitter: float = 3) -> list[Item]:
    """One picture of each of these classes, again and again with jitter, grey levels."""
    rng, first = np.random.default_rng(7), {item.label: item.rgb for item in content}
    return [with_pixels(item, noisy(first[item.label], rng, jitter)) if item.label in classes else item for item in content]


def of_few_pictures(content: list[Item], label: str, pictures: int, jitter: float) -> list[Item]:
    """A class that shows so many pictures in turn, under so much noise that none repeats another, grey levels."""
    rng, shown = np.random.default_rng(8), [item.rgb for item in content if item.label == label][:pictures]
    places = [i for i, item in enumerate(content) if item.label == label]
    return changed(content, places, lambda item, place: with_pixels(item, noisy(shown[place % pictures], rng, jitter)))


def of_one_region(content: list[Item], label: str, share: float) -> list[Item]:
    """A class whose pictures differ from its first one by such a share of what they should."""
    first = next(item.rgb for item in content if item.label == label).astype(float)
    near = [first + share * (item.rgb - first) for item in content]
    return [with_pixels(item, rgb.astype(np.uint8)) if item.label == label else item for item, rgb in zip(content, near, strict=True)]


def of_another_style(content: list[Item], label: str) -> list[Item]:
    """A class that shows its colours and nothing else of it."""
    rng = np.random.default_rng(9)
    return [with_pixels(item, striped(item.rgb, rng).astype(np.uint8)) if item.label == label else item for item in content]


def unbalanced(content: list[Item]) -> list[Item]:
    return [item for i, item in enumerate(content) if item.label != "blue" or i < len(content) // 2]


def planned(counts: dict[str, int]) -> Callable[[Bench], Planted]:
    """A set that says that it was sampled by the configured plan, of so many images per class."""

    def plant(bench: Bench) -> Planted:
        config = parse_config(dump_config(plain_config()) | {"sample": {"images_per_class": PER_CLASS}}, where="test")
        plan = make_plan(equal_quotas(CLASSES, PER_CLASS), seed=config.seed, shard_size=250, batch_size=50)
        content = [item for name, count in counts.items() for item in [i for i in items(PER_CLASS + 9, 77) if i.label == name][:count]]
        return bench.write(content, plan_digest=plan.digest), {"config": config}

    return plant


def empty(bench: Bench) -> Path:
    path = rewrite_manifest(bench.sound(), lambda rows: rows.iloc[:0])
    index = json.loads((path / "snapshot.json").read_text())
    (path / "snapshot.json").write_text(json.dumps(index | {"shards": [], "counts": {}}))
    return path


def without_a_shard(bench: Bench) -> Path:
    path = bench.sound(shards=3)
    (path / "train-000001.tar").unlink()
    return path


def another_generator(bench: Bench) -> Planted:
    (bench.folder / "generator").mkdir()
    card = {"family": "pixel_cascade", "digest": "cd" * 32, "prompts": dict.fromkeys(CLASSES, "p")}
    (bench.folder / "generator" / "generator.json").write_text(json.dumps(card))
    return bench.sound(), {"generator": bench.folder / "generator"}


def wrong_prompts(bench: Bench) -> Planted:
    """All of a class were sampled with another class's prompt, as only the generator's card can tell."""
    path, options = another_generator(bench)  # type: ignore[misc]
    card = json.loads((bench.folder / "generator" / "generator.json").read_text())
    (bench.folder / "generator" / "generator.json").write_text(
        json.dumps(card | {"digest": "ab" * 32, "prompts": {name: "p" if name != "red" else "a red thing" for name in CLASSES}})
    )
    return path, options


def nan_metric(bench: Bench) -> Path:
    nothing = Estimate(value=float("nan"), low=float("nan"), high=float("nan"))
    bench.patch.setattr("gda.gate.closeness.fid_of_split", lambda *args, **kwargs: nothing)
    return bench.sound()


class ExpectNothingButTrouble(ColumnAggregateExpectation):
    """An expectation that raises."""

    metric_dependencies = ("column.value_counts",)

    def _validate(self, metrics: Any, runtime_configuration: Any = None, execution_engine: Any = None) -> dict[str, Any]:
        raise ZeroDivisionError("planted")


def raising_expectation(bench: Bench) -> Path:
    original = expectations.expectations
    bench.patch.setattr(expectations, "expectations", lambda plan: [*original(plan), ExpectNothingButTrouble(column="key")])
    return bench.sound()


def vanishing_expectations(bench: Bench) -> Path:
    bench.patch.setattr(expectations, "expectations", lambda plan: [])
    return bench.sound()


def another_reference(bench: Bench) -> Planted:
    other = write_set(bench.folder / "other", {split: items(6, 9 + i) for i, split in enumerate(REAL_COUNTS)}, kind="real")
    return bench.sound(), {"snapshot": other}


def lone_image(change: Callable[[Item], Item]) -> Plant:
    """A sound set with one image changed."""
    return of_items(lambda bench, content: changed(content, [5], lambda item, place: change(item)))


def as_grey_file(item: Item) -> Item:
    buffer = io.BytesIO()
    Image.fromarray(item.rgb).convert("L").save(buffer, "PNG")
    return replace(item, rgb=grey(item.rgb, np.random.default_rng(0)), encoded=buffer.getvalue())


def mixed_up(rows: pd.DataFrame) -> pd.DataFrame:
    """Two records trade everything but their places in the shard."""
    places = ["shard", "offset"]
    traded = rows.drop(columns=places).iloc[[1, 0, *range(2, len(rows))]].reset_index(drop=True)
    return pd.concat([traded, rows[places]], axis=1)


DEFECTS: dict[str, tuple[Plant, str]] = {
    # What was requested.
    "a class is missing": (
        of_items(lambda bench, content: [item for item in content if item.label != "blue"]),
        r"the classes of the images are not those of the real set: there are none of blue",
    ),
    "a class too many": (
        of_items(lambda b, content: changed(content, [0, 4], lambda item, _: replace(item, label="mauve")), classes=(*CLASSES, "mauve")),
        r"there are some of mauve",
    ),
    "unbalanced classes": (
        of_items(lambda bench, content: unbalanced(content)),
        r"the largest class has 2.00 times the images of the smallest; at most 1.5 times is accepted \(105 images\)",
    ),
    "fewer images than planned": (planned(dict.fromkeys(CLASSES, 29)), r"the set has 116 images; 120 were planned"),
    "another share than planned": (
        planned({"red": 31, "green": 29, "blue": 30, "grey": 30}),
        r"the classes of the images are not as planned: there are another number of red \(31 of 30\), green \(29 of 30\)",
    ),
    "an empty set": (empty, r"the manifest holds no images"),
    "too few images to compare": (of_items(lambda bench, content: content[:3]), r"too few images to compare: 3 synthetic and 320 real"),
    "too few images to be sure of": (
        of_items(lambda bench, content: content[:16]),
        r"confirm 100.0% \(as low as 80.6%\) of 16 labels; at least 91.0% is needed",
    ),
    "a record of another split": (
        lambda bench: write_set(bench.folder / "synthetic", {"train": sound()[:-4], "val": sound()[-4:]}),
        r"4 of 120 images are not in split train, where all of a synthetic set belong, but in val",
    ),
    # How they were sampled.
    "a repeated seed": (of_meta([5], seed=0), r"2 of 120 records share their seed with another, such as 0"),
    "a repeated key": (
        of_manifest(lambda rows: rows.assign(key=rows["key"].where(rows.index != 3, rows["key"][2]))),
        r"key 'train-0002' occurs twice in the manifest",
    ),
    "missing provenance": (of_meta([4], guidance_scale=None), r"1 of 120 records have no guidance_scale"),
    "no provenance at all": (of_meta(range(TOTAL), seed=None), r"120 of 120 records have no seed"),
    "mixed guidance": (
        of_meta([4, 9], guidance_scale=3.0),
        r"2 of 120 records differ from the rest in their guidance_scale.*1.5 \(118\), 3.0 \(2\)",
    ),
    "mixed steps": (of_meta([4], num_inference_steps=5), r"1 of 120 records differ from the rest in their num_inference_steps"),
    "mixed schedulers": (of_meta([4], scheduler="ddpm"), r"1 of 120 records differ from the rest in their scheduler"),
    "guidance that cannot be": (
        of_meta(range(TOTAL), guidance_scale=0.0),
        r"the guidance_scale of a record is 0.0, which is not from 1 to 100",
    ),
    "a strength without a source": (of_meta([4], strength=0.5), r"a strength without a source image"),
    "a wrong prompt": (of_meta([4], prompt="another"), r"1 of 120 images were generated with another prompt than their class's"),
    "the prompts of a class": (wrong_prompts, r"30 of 120 images were generated with another prompt than their class's"),
    "another generator's images": (another_generator, r"120 of 120 images are of another generator than cdcd"),
    "images of two generators": (
        of_meta([7], generator_digest="ef" * 32),
        r"1 of 120 records differ from the rest in their generator_digest",
    ),
    # Their bytes.
    "a shard cut short": (of_shard(lambda data: data[: len(data) // 2 // 512 * 512]), r"train-000001.tar"),
    "a bit flipped in an image": (of_shard(lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]), r"train-000001.tar"),
    "a shard is gone": (without_a_shard, r"train-000001.tar: not found, though snapshot.json names it"),
    "an image that stops half-way": (
        lone_image(lambda item: replace(item, encoded=encode_png(item.rgb)[:-40])),
        r"1 of 120 images cannot be decoded; none may be damaged",
    ),
    "no image at all": (lone_image(lambda item: replace(item, encoded=b"not an image")), r"1 of 120 images do not decode to the last byte"),
    "other pixels than recorded": (
        lone_image(lambda item: replace(item, encoded=encode_png(item.rgb[::-1].copy()))),
        r"1 of 120 images do not show the pixels that the manifest records",
    ),
    "another size than recorded": (
        of_manifest(lambda rows: rows.assign(width=SIZE + 1)),
        r"120 of 120 images do not have the size that the manifest records",
    ),
    "a wrong size": (
        lone_image(lambda item: replace(item, rgb=items(1, 77, size=24)[0].rgb)),
        r"1 of 120 records differ from the rest in their decoded_width, of which a set has one: 16 \(119\), 24 \(1\)",
    ),
    "a grey file": (lone_image(as_grey_file), r"1 of 120 images are not stored as RGB but as L"),
    "rows that are not the shard's": (of_manifest(mixed_up), r"train-000000.tar: its records are not those of the manifest"),
    "a label that is not the class": (
        of_manifest(lambda rows: rows.assign(label=rows["label"].where(rows.index != 3, 0))),
        r"record 'train-0003': label 0 is not class 'grey'",
    ),
    # What they show.
    "swapped labels": (
        of_items(lambda bench, content: relabelled(content, range(0, TOTAL, 10))),
        r"classifiers trained on real images confirm 90.0% \(as low as 83.\d%\) of 120 labels; at least 91.0% is needed",
    ),
    "a class under another's name": (
        of_items(
            lambda bench, content: (
                [replace(item, label="red" if item.label == "green" else item.label) for item in content[:-60]]
                + [replace(item, label="green" if item.label == "red" else item.label) for item in content[-60:]]
            )
        ),
        r"in (red|green), the class that is confirmed least for its limit, \d+.\d% of \d+ labels are; at least 70.0% is needed, unseen",
    ),
    "a shard twice": (
        of_items(lambda bench, content: content + content, shards=2),
        r"50.0% of the 240 images repeat another one exactly; at most 1.0% is accepted",
    ),
    "repeated images": (
        of_items(lambda bench, content: changed(content, range(8, 20), lambda item, place: with_pixels(item, content[place % 4].rgb))),
        r"10.0% of the 120 images repeat another one exactly",
    ),
    "blurred images": (of_pixels(blurred), r"FID is .* real images against real ones score .* with 120 images on each side"),
    "noise": (of_pixels(lambda rgb, rng: rng.integers(0, 256, rgb.shape)), r"classifiers trained on real images confirm \d+.\d%"),
    "grey images": (of_pixels(grey), r"classifiers trained on real images confirm"),
    "inverted colours": (of_pixels(lambda rgb, rng: 255 - rgb), r"classifiers trained on real images confirm"),
    "another data set's images": (of_pixels(striped), r"FID is .* real images against real ones score"),
    "mode collapse": (
        of_items(lambda bench, content: collapsed(content, CLASSES)),
        r"only \d+.\d% \(as low as .*\) of the real images have a synthetic one near",
    ),
    "one class collapsed": (
        of_items(lambda bench, content: collapsed(content, ["red"])),
        r"25.0% \(at least \d+.\d%\) of the 120 images repeat another but for encoding, size, mirroring or light",
    ),
    "one class collapsed under noise": (
        of_items(lambda bench, content: collapsed(content, ["red"], jitter=8)),
        r"in red, the class whose images are most alike, two of them differ by .* on average; at least .* is needed, its real",
    ),
    "one class of four pictures": (
        of_items(lambda bench, content: of_few_pictures(content, "red", 4, jitter=12)),
        r"in red, the class that shows least of its variety, only \d.\d% of the real images lie among the synthetic ones; at least 1",
    ),
    "one class of pictures like one": (
        of_items(lambda bench, content: of_one_region(content, "green", 0.35)),
        r"in green, the class that shows least of its variety, only \d+.\d% of the real images lie among the synthetic ones; at least 1",
    ),
    "one class in another style": (
        of_items(lambda bench, content: of_another_style(content, "blue")),
        r"in blue, the class that is covered least for its limit, only \d.\d% of the real images have a synthetic one near them",
    ),
    # Where they come from.
    "training images": (from_split("train", 40), r"40 of 120 images are pixel for pixel images of the train split; none may be"),
    "copies of training images": (
        from_split("train", 40, noisy),
        r"3\d.\d% \(at least .*\) of the 120 images are closer to a training image",
    ),
    "mirrored training images": (
        from_split("train", 40, lambda rgb, rng: rgb[:, ::-1].copy()),
        r"33.3% \(at least 25.\d%\) of the 120 images are training images but for encoding, size, mirroring or light",
    ),
    "a val image": (from_split("val", 1), r"1 of 120 images are pixel for pixel images of the val split; none may be"),
    "a test image": (from_split("test", 1), r"1 of 120 images are pixel for pixel images of the test split; none may be"),
    "a test image, mirrored": (
        from_split("test", 1, lambda rgb, rng: rgb[:, ::-1].copy()),
        r"0.83% \(at least 0.\d\d%\) of the 120 images are test images but for encoding",
    ),
    "a test image, re-encoded": (
        from_split("test", 1, lambda rgb, rng: as_jpeg(rgb)),
        r"of the 120 images are test images but for encoding",
    ),
    # The gate itself.
    "a metric that is not a number": (nan_metric, r"could not be measured, which counts as failed: fid_train"),
    "an expectation that raises": (raising_expectation, r"expect_nothing_but_trouble could not be checked .*planted"),
    "expectations that vanish": (vanishing_expectations, r"0 of 0 expectations came back with a result, which is not a pass"),
    "another snapshot's reference": (another_reference, r"is the reference of snapshot \w+, not of \w+"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_refused_for_its_own_reason(name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that lets this pass, or refuses it for something else, is of no use."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    # Metrics are held against their limits twice; here the first time is to find them.
    check = inspection.check_structure
    monkeypatch.setattr(inspection, "check_structure", lambda table, plan, measures, assessments: check(table, plan))
    plant, reason = DEFECTS[name]
    planted = plant(Bench(world=world, folder=tmp_path, patch=monkeypatch))
    path, options = planted if isinstance(planted, tuple) else (planted, {})
    passed, reasons = assessed(world, path, **options)
    assert not passed
    assert any(re.search(reason, text) for text in reasons), "\n".join(reasons)
    assert not any(re.search(r"\bnan\b|\bNone\b|\{|\}", reason) for reason in reasons), "a reason that nobody understands"


def test_twenty_sound_sets_pass(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """New images of the same source are not refused, by any of the default limits: a gate that cries wolf is turned off."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    refused = {}
    for seed in range(1000, 1020):
        folder = tmp_path / str(seed)
        passed, reasons = assessed(world, write_set(folder / "synthetic", {"train": sound(seed)}))
        if not passed:
            refused[seed] = reasons
    with capsys.disabled():
        print(f"\nfalse refusal rate: {len(refused)} of 20 sound sets of {TOTAL} images")
    assert not refused


def test_the_command_prints_a_refusal_and_fails_under_strict_alone(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refusal is a result: exit code 0 with the reason to be read, and 4 for those who request it, with every reason."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    synthetic = write_set(tmp_path / "synthetic", {"train": [item for item in sound() if item.label != "blue"]})
    command = ["validate", "--synthetic", str(synthetic), "--snapshot", str(world / "real"), "--reference", str(world / "reference")]
    command += [f"--set=classify.{name}={value}" for name, value in (("image_size", SIZE), ("batch_size", 32), ("warmup_steps", 5))]
    assert main([*command, "--out", "plain"]) == 0
    assert "refused: " in "".join(capsys.readouterr())
    assert main([*command, "--out", "strict", "--strict"]) == 4
    assert "there are none of blue" in "".join(capsys.readouterr())
    assert not read_document(tmp_path / "strict" / "verdict.json", Verdict).passed

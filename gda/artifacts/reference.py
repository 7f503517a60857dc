"""The index of a real set's reference: classifiers, features and floors."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from gda.artifacts.document import SCHEMA_VERSION, Document
from gda.errors import DataError

REFERENCE_FILE, REFERENCE_PROBABILITIES = "reference.json", "probabilities.safetensors"


class ReferenceIndex(Document):
    """`reference.json`, written last."""

    schema_version: Literal[1] = SCHEMA_VERSION
    digest: str = Field(description="content: snapshot, extractor, features and every fold's weights")
    snapshot_digest: str
    extractor: str
    extractor_digest: str
    image_size: int = Field(description="side to which images are resized before anything is measured, pixels")
    folds: tuple[str, ...] = Field(min_length=2, description="content digest of each fold's classifier, in fold-<k>/")
    cross_fitted: Literal["train", "train and val"] = Field(
        "train and val", description="images that the folds were split from; earlier versions, which did not record it, used val too"
    )
    counts: dict[str, int] = Field(description="images by split")
    agreement: float = Field(description="share of training images whose label a classifier confirms that has not seen them")
    agreement_by_class: tuple[float | None, ...]
    fid_floor: float = Field(description="FID between disjoint halves of train and val together, mean over repeats")
    fid_floor_low: float
    fid_floor_high: float
    fid_floor_n: int = Field(description="images in each half of the floor")

    def require_without_val(self, path: Path) -> None:
        """Raises `DataError` where the classifiers were trained on validation images, as those of earlier versions were."""
        if self.cross_fitted != "train":
            raise DataError(f"{path}: its classifiers have seen validation images, so nothing may be picked by them; compute it again")

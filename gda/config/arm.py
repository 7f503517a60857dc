"""The arms of a comparison by name: which images a classifier is trained on, and how it is trained on them.

A name combines the two: `real+synthetic_strong` is trained on real and synthetic images with strong augmentation. A name without a training
means the standard training. `classify.trainings` may name further trainings besides `TRAININGS`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

# Images that an arm adds to the real ones or uses in their place: the accepted synthetic set, a control set, or a pool of more real images.
OtherImages = Literal["", "synthetic", "zero_shot", "img2img", "pool"]
TRAININGS = ("long", "strong")
TRAINING_NAME = "[a-z][a-z0-9]*"


@dataclass(frozen=True, kw_only=True)
class Data:
    """The images of an arm: `real` ones, `others`, or both mixed.

    `targeted` data use the other images of the hard classes alone. `last_layer` data end with steps of the head alone on real images.
    """

    name: str
    real: bool = True
    others: OtherImages = ""
    targeted: bool = False
    last_layer: bool = False

    @property
    def synthetic(self) -> bool:
        """Whether a generator made the other images."""
        return self.others in ("synthetic", "zero_shot", "img2img")

    @property
    def gated(self) -> bool:
        """Whether the other images need a verdict that accepts them."""
        return self.others == "synthetic"

    @property
    def mixes(self) -> bool:
        """Whether a batch mixes real training images with others, so that their ratio has an effect."""
        return self.real and self.others != ""

    @property
    def compared_by_seed(self) -> bool:
        """Whether all seeds are trained: the usual candidate and its rival. Other data are controls with fewer seeds."""
        return self.name in ("real", "real+synthetic")

    @property
    def rival(self) -> bool:
        """Whether it may be a rival of the candidate: its images are real, or generated without fine-tuning or from real images."""
        return self.real and not self.gated


# In the order of tables.
DATA = {
    data.name: data
    for data in (
        Data(name="real"),
        Data(name="retrieved", others="pool"),
        Data(name="zero_shot", real=False, others="zero_shot"),
        Data(name="real+zero_shot", others="zero_shot"),
        Data(name="img2img", others="img2img"),
        Data(name="synthetic", real=False, others="synthetic"),
        Data(name="real+synthetic", others="synthetic"),
        Data(name="targeted", others="synthetic", targeted=True),
        Data(name="last_layer", others="synthetic", last_layer=True),
    )
}


class Arm(str):
    """One training condition by its name, `DATA` or `DATA_TRAINING`. Raises `ValueError` for an unknown name.

    The training `long` has as many steps as arms that mix images, which therefore have no `long` of their own. `strong` is long too and
    has strong augmentation. Trainings of the configuration are long. Equal names are one object.
    """

    __slots__ = ()
    _known: ClassVar[dict[str, "Arm"]] = {}
    REAL: ClassVar["Arm"]
    REAL_LONG: ClassVar["Arm"]
    REAL_STRONG: ClassVar["Arm"]
    RETRIEVED: ClassVar["Arm"]
    ZERO_SHOT: ClassVar["Arm"]
    IMG2IMG: ClassVar["Arm"]
    SYNTHETIC: ClassVar["Arm"]
    MIXED: ClassVar["Arm"]
    MIXED_STRONG: ClassVar["Arm"]
    TARGETED: ClassVar["Arm"]
    LAST_LAYER: ClassVar["Arm"]

    def __new__(cls, name: str) -> "Arm":
        if name not in cls._known:
            data, training = _split(name)
            known = data in DATA and (name in DATA or re.fullmatch(TRAINING_NAME, training) is not None)
            if not known or (training == "long" and DATA[data].mixes):
                raise ValueError(f"no such arm {name!r}; accepted: {', '.join(DATA)}, {HOW}")
            cls._known[str(name)] = super().__new__(cls, name)
        return cls._known[name]

    @property
    def data(self) -> Data:
        """Its images."""
        return DATA[_split(self)[0]]

    @property
    def training(self) -> str:
        """One of `TRAININGS`, a name of `classify.trainings`, or empty for the standard training."""
        return _split(self)[1]

    @property
    def long(self) -> bool:
        """Whether it trains for as many steps as arms that mix images."""
        return self.data.mixes or self.training != ""

    @property
    def plain(self) -> bool:
        """Whether it has the configuration's settings for all arms, at either length."""
        return self.training in ("", "long")

    def trained_like(self, other: "Arm") -> bool:
        """Whether both are trained with the same settings, apart from their length."""
        return self.training == other.training or (self.plain and other.plain)

    def with_data(self, name: str) -> "Arm":
        """The arm of other data with the same training. Raises `ValueError` where there is no such arm."""
        return Arm(_joined(name, self.training))

    def with_training(self, training: str) -> "Arm":
        """The arm of the same data with another training. Raises `ValueError` where there is no such arm."""
        return Arm(_joined(self.data.name, training))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(_validated, serialization=core_schema.to_string_ser_schema(), ref="Arm")

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        kinds = "|".join(map(re.escape, DATA))
        words = (cls.__doc__ or "").split(". ")[0] + "."
        return {"type": "string", "pattern": f"^({kinds})(_{TRAINING_NAME})?$", "title": "Arm", "description": words}


def in_order(arms: Iterable[Arm]) -> list[Arm]:
    """The distinct arms in the order of tables."""
    return sorted(set(arms), key=place)


def place(arm: Arm) -> tuple[int, int, str]:
    """The place of `arm` in that order: by its data, then the built-in trainings from plain to strong, then the configuration's."""
    known = ("", *TRAININGS)
    return list(DATA).index(arm.data.name), known.index(arm.training) if arm.training in known else len(known), arm.training


def _split(name: str) -> tuple[str, str]:
    if name in DATA:
        return name, ""
    data, _, training = name.rpartition("_")
    return data, training


def _joined(data: str, training: str) -> str:
    return f"{data}_{training}" if training else data


def _validated(name: Any) -> Arm:
    if not isinstance(name, str):
        raise ValueError(f"expected the name of an arm, got {type(name).__name__}")
    return Arm(name)


HOW = "each also with _strong or with _NAME of a training in classify.trainings, and those that do not mix images with _long"
ARMS = tuple(
    Arm(_joined(data.name, training)) for data in DATA.values() for training in ("", *TRAININGS) if training != "long" or not data.mixes
)
for _constant, _name in {
    "REAL": "real",
    "REAL_LONG": "real_long",
    "REAL_STRONG": "real_strong",
    "RETRIEVED": "retrieved",
    "ZERO_SHOT": "zero_shot",
    "IMG2IMG": "img2img",
    "SYNTHETIC": "synthetic",
    "MIXED": "real+synthetic",
    "MIXED_STRONG": "real+synthetic_strong",
    "TARGETED": "targeted",
    "LAST_LAYER": "last_layer",
}.items():
    setattr(Arm, _constant, Arm(_name))

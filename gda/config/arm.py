"""The arms of a comparison by name: which images a classifier is trained on, and how it is trained on them.

Both are chosen apart: `real+synthetic_strong` is trained on real and synthetic images with strong augmentation. A name without a training
is that of the standard one; trainings beside `TRAININGS` are those that `classify.trainings` names.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

# What an arm reads beside the real images, or in their place: the judged synthetic set, a control set, or a pool of more real images.
Others = Literal["", "synthetic", "zero_shot", "img2img", "pool"]
TRAININGS = ("long", "strong")
TRAINING_NAME = "[a-z][a-z0-9]*"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images an arm is trained on: `real` ones, `others`, or both mixed.

    Of `targeted` data the other images are those of the hard classes alone. `last_layer` data end with real images, for the head alone.
    """

    name: str
    real: bool = True
    others: Others = ""
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
        """Whether a batch holds real training images and others, so that their ratio counts."""
        return self.real and self.others != ""

    @property
    def compared_by_seed(self) -> bool:
        """Whether every seed is trained: the usual candidate and what it has to beat. The others are controls with fewer seeds."""
        return self.name in ("real", "real+synthetic")

    @property
    def rival(self) -> bool:
        """Whether a candidate may have to beat it: no generated images, or those that need no fine-tuning or start from real ones."""
        return self.real and not self.gated


# In the order in which tables show them.
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
    """One training condition by its name, `DATA` or `DATA_TRAINING`. Raises `ValueError` for a name that is none.

    Trainings are `long`, with as many updates as arms that mix, which those are already, `strong`, which is long too and has strong
    augmentation, and those of the configuration, which are long. Equal names are one object.
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
        """Which images it is trained on."""
        return DATA[_split(self)[0]]

    @property
    def training(self) -> str:
        """One of `TRAININGS`, a name of `classify.trainings`, or empty for the standard training."""
        return _split(self)[1]

    @property
    def long(self) -> bool:
        """Whether it takes as many updates as arms that mix."""
        return self.data.mixes or self.training != ""

    @property
    def plain(self) -> bool:
        """Whether it is trained as the configuration says for all arms, however long."""
        return self.training in ("", "long")

    def trained_like(self, other: "Arm") -> bool:
        """Whether both are trained by the same settings, but for their length."""
        return self.training == other.training or (self.plain and other.plain)

    def with_data(self, name: str) -> "Arm":
        """The arm of other data that is trained alike. Raises `ValueError` where those cannot be."""
        return Arm(_joined(name, self.training))

    def with_training(self, training: str) -> "Arm":
        """The arm of the same data, trained otherwise. Raises `ValueError` where those cannot be."""
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
    """Different arms in the order in which tables show them."""
    return sorted(set(arms), key=place)


def place(arm: Arm) -> tuple[int, int, str]:
    """Where `arm` stands in that order: by its data, then from the plainest training to the strongest, then the configuration's."""
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


HOW = "each also with _strong, with the _NAME of a training in classify.trainings, and where they do not mix with _long"
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

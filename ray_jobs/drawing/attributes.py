"""What a drawn face shows: FS2K's attributes, an artificial score, and what varies besides."""

from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

HairColor = Literal["brown", "black", "red", "none", "golden"]
Gender = Literal["male", "female"]

MIN_SCORE, MAX_SCORE = 60, 99


class FaceAttributes(BaseModel):
    """One drawn person, in the words that users see."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hair: bool = Field(description="has hair")
    hair_color: HairColor = Field(description="colour of the hair; none exactly where there is no hair")
    gender: Gender = Field(description="drawn by brows, lashes, lips, length of hair and beard")
    earring: bool = Field(description="wears earrings")
    smile: bool = Field(description="smiles")
    frontal_face: bool = Field(description="looks at the camera: turned by at most 6 degrees, otherwise by 20 to 25")
    style: Literal[0, 1, 2] = Field(description="0 like a photo, 1 pencil sketch, 2 flat colours with outlines")
    score: int = Field(
        ge=MIN_SCORE,
        le=MAX_SCORE,
        description="an artificial score, no judgement of looks: the larger the eyes and the cheeks' blush, the higher",
    )
    skin: float = Field(ge=0, le=1, description="skin tone, 0 light to 1 dark")
    beard: bool = Field(default=False, description="has a short beard")

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.hair == (self.hair_color == "none"):
            raise ValueError(f"hair={self.hair} does not go with hair_color={self.hair_color}")
        return self

    @property
    def strength(self) -> float:
        """The score as 0 to 1."""
        return (self.score - MIN_SCORE) / (MAX_SCORE - MIN_SCORE)

    @classmethod
    def random(cls, rng: np.random.Generator) -> Self:
        """Draws a person by lot."""
        gender: Gender = "female" if rng.random() < 0.5 else "male"
        hair = bool(rng.random() < 0.85)
        return cls(
            hair=hair,
            hair_color=_HAIR_COLORS[int(rng.integers(len(_HAIR_COLORS)))] if hair else "none",
            gender=gender,
            skin=float(rng.random()),
            beard=gender == "male" and bool(rng.random() < 0.4),
            **_of_a_moment(rng),
        )

    def another_moment(self, rng: np.random.Generator) -> Self:
        """The same person at another time: what is not the body is drawn by lot again, the score too."""
        return self.model_copy(update=_of_a_moment(rng))


_HAIR_COLORS: tuple[HairColor, ...] = ("brown", "black", "red", "golden")


def _of_a_moment(rng: np.random.Generator) -> dict[str, object]:
    return {
        "earring": bool(rng.random() < 0.4),
        "smile": bool(rng.random() < 0.5),
        "frontal_face": bool(rng.random() < 0.7),
        "style": int(rng.choice(3, p=(0.4, 0.25, 0.35))),
        "score": int(rng.integers(MIN_SCORE, MAX_SCORE + 1)),
    }

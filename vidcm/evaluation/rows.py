"""Names of the rows of result tables. Needs neither torch nor numpy."""

import re
from dataclasses import dataclass

from vidcm.errors import UsageError


@dataclass(frozen=True)
class Row:
    """How a row's clips are generated.

    Attributes:
        role: "student", "teacher", or "codec": true clips through the codec and back, the upper
            bound of the others; "diffusers": the student, exported and run by diffusers.
        num_inference_steps: of the sampler; 0 for the codec.
        zero_shot: in edits, do not feed given frames to a model that was trained with them.
    """

    role: str
    num_inference_steps: int = 0
    zero_shot: bool = False

    @classmethod
    def parse(cls, text: str) -> "Row":
        """The row of a name such as "codec", "teacher-50", "student-4" or "student-zero-shot-4".

        Raises:
            UsageError: for any other name.
        """
        pattern = r"codec|(?:(teacher|student)(-zero-shot)?|(diffusers))-([1-9]\d{0,2}|1000)"
        if not (match := re.fullmatch(pattern, text)):
            raise UsageError(
                f"got the row {text!r}, expected codec, teacher-N, student-N or diffusers-N, "
                "N from 1 to 1000"
            )
        role, zero_shot, diffusers, steps = match.groups()
        return cls(role or diffusers or "codec", int(steps or 0), bool(zero_shot))

    def __str__(self) -> str:
        steps = f"-{self.num_inference_steps}" if self.num_inference_steps else ""
        return f"{self.role}{'-zero-shot' if self.zero_shot else ''}{steps}"

    @property
    def sort_key(self) -> tuple[int, bool, int]:
        """The codec, teachers from many steps to few, students from few to many."""
        place = ("codec", "teacher", "student", "diffusers").index(self.role)
        sign = -1 if self.role == "teacher" else 1
        return place, self.zero_shot, sign * self.num_inference_steps

    @property
    def steps_label(self) -> str:
        """As "4 steps" or "1 step zero-shot"."""
        count = self.num_inference_steps
        return f"{count} step{'s' * (count > 1)}{' zero-shot' * self.zero_shot}"


def is_model_row(name: str) -> bool:
    """Whether a row of edits is one of a model, not of a baseline."""
    return name.startswith(("student-", "teacher-"))


ROWS = tuple(
    Row.parse(name)
    for name in "codec teacher-50 teacher-8 student-1 student-2 student-4 student-8".split()
)
EDIT_ROWS = tuple(
    Row.parse(name) for name in "student-1 student-2 student-4 student-8 teacher-50".split()
)

"""What a benchmark of generation asks for: one picture of a prompt, in a file of a given name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Amount, Answers

PREDICTIONS = "predictions"
"""The folder of what official scorers read, in that of a run."""

DRAWING: Mapping[str, Amount] = {"guidance_scale": Amount(None), "temperature": Amount(None)}
"""Options of every benchmark of generation; a model's own are its authors' values."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture to be drawn. Its answer is `file`, once that is there.

    Attributes:
      id: that no other picture of the benchmark has.
      group: the same for all pictures of a prompt.
      prompt: what it shows.
      prompt_number: of the prompt among all of the benchmark.
      number: of the picture among those of its prompt. What is drawn depends on the two numbers, the prompt and the
        seed alone.
      file: its name, from the run's folder.
      side: pixels of a side that it is kept with; None: as it is drawn.
      data: the benchmark's folder, where what it is held against lies.
    """

    id: str
    group: str
    prompt: str = field(repr=False)
    prompt_number: int
    number: int
    file: str
    side: int | None = None
    data: Path = field(repr=False)

    @property
    def asked(self) -> list[str]:
        """All that its answer depends on."""
        return [self.prompt, *map(str, (self.prompt_number, self.number, self.file, self.side))]


def pictures_of(prompt: str, prompt_number: int, names: Sequence[str], data: Path, side: int | None) -> list[Picture]:
    """The pictures of one prompt.

    Args:
      names: of their files, from the run's folder.
    """
    return [
        Picture(
            id=name.removeprefix(f"{PREDICTIONS}/").removesuffix(".png"),
            group=str(prompt_number),
            prompt=prompt,
            prompt_number=prompt_number,
            number=number,
            file=name,
            side=side,
            data=data,
        )
        for number, name in enumerate(names)
    ]


def drawn_files(pictures: Sequence[Picture], answers: Answers) -> list[Path]:
    """The files of all pictures.

    Raises:
      JanusError: one is not there.
    """
    files = [Path(answers[picture.id]) for picture in pictures]
    there: dict[Path, set[str]] = {}
    for file, picture in zip(files, pictures, strict=True):
        if file.parent not in there:
            there[file.parent] = {entry.name for entry in file.parent.iterdir()} if file.parent.is_dir() else set()
        if file.name not in there[file.parent]:
            raise JanusError(
                f"{file} was drawn and is gone; remove the line of {picture.id} from the answers.jsonl of its run, "
                f"and it is drawn again."
            )
    return files

"""What a learner has done, kept in the folder of the exercises."""

import dataclasses
import json
from pathlib import Path

from jaxattn.files import read_json, write_whole

FILE = "progress.json"


@dataclasses.dataclass
class Progress:
    """Which steps are done, and how many hints were shown of each."""

    done: list[int] = dataclasses.field(default_factory=list)
    hints: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> "Progress":
        """Read it; a folder without the file has no progress yet."""
        path = directory / FILE
        if not path.exists():
            return cls()
        values = read_json(path)
        try:
            return cls(sorted(map(int, values["done"])), {str(k): int(v) for k, v in values["hints"].items()})
        except (TypeError, KeyError, ValueError, AttributeError):
            raise ValueError(f"{path} does not hold the progress of exercises: delete it") from None

    def write(self, directory: Path) -> None:
        """Replace the file."""
        write_whole(directory / FILE, json.dumps(dataclasses.asdict(self), indent=1).encode("utf-8"))

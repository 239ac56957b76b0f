"""The results page: a table of claims, and a section for each experiment, from the files of numbers."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import EXPERIMENTS
from .claims import HEADER, Claim
from .presets import PRESETS

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NO_PAGE = f"# The papers' findings, reproduced\n\n{BEGIN}\n{END}\n"


@dataclass(frozen=True)
class Result:
    """A file of numbers, and the experiment that it is of."""

    path: Path
    experiment: Any
    about: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> "Result":
        """From the file.

        Raises:
            ValueError: an experiment did not write it.
        """
        about = json.loads(path.read_text())
        if lacking := {"command", "preset", "machines", "findings"} - about.keys():
            raise ValueError(f"{path} lacks {', '.join(sorted(lacking))}: make it again with reproduce.py")
        names = {each.NAME: each for each in EXPERIMENTS}
        name = path.stem.removesuffix(f"-{about['preset']}")
        if name not in names:
            raise ValueError(f"{path} is of no experiment ({', '.join(names)}); remove it or rename it")
        return cls(path, names[name], about)

    @property
    def picture(self) -> Path:
        """Beside the numbers."""
        return self.path.with_suffix(".png")

    def draw(self) -> None:
        """The picture, from the numbers alone."""
        self.experiment.draw(self.about["findings"], self.picture)

    def claims(self) -> list[Claim]:
        """What the numbers say of the papers' claims.

        Raises:
            ValueError: the file is of an earlier version of the experiment.
        """
        try:
            claims: list[Claim] = self.experiment.claims(self.about["findings"])
        except KeyError as error:
            raise ValueError(
                f"{self.path} lacks {error}, as if of an earlier version: make it again by "
                f"{self.about['command']}"
            ) from error
        return claims

    def rows(self) -> list[str]:
        """Of the table of claims."""
        return [claim.row(self.about["command"]) for claim in self.claims()]

    def heading(self) -> list[str]:
        """What tells it from the runs of the usual size."""
        preset = self.about["preset"]
        if preset == "cpu":
            return []
        return [
            f"### At `--preset {preset}`"
            if preset in PRESETS
            else f"### {preset.replace('-', ' ').capitalize()}"
        ]

    def warning(self) -> list[str]:
        """That it was not run as it is meant, where that is so."""
        usual = {f"--preset={self.about['preset']}", "logs"}
        if "--" not in " ".join(part for part in self.about["command"].split() if part not in usual):
            return []
        return [f"Not the whole experiment, at the size that it is meant for: `{self.about['command']}`."]

    def reasons(self) -> list[str]:
        """Why ours differs from what is said, for the claims where it does."""
        return [f"- *{claim.claim}*: {claim.reason}." for claim in self.claims() if claim.reason]

    def section(self, page: Path) -> str:
        """The numbers in words, with the picture and where they come from."""
        where = _between(page, self.path)
        parts = [*self.warning(), self.experiment.section(self.about["findings"]), "\n".join(self.reasons())]
        return "\n\n".join(part for part in parts if part) + (
            "\n\n"
            f"![{self.experiment.TITLE}]({where.removesuffix('.json')}.png)\n\n"
            f"`{self.about['command']}`, on {' and '.join(self.about['machines'])}: "
            f"[{self.path.name}]({where})."
        )


def results_in(folder: Path) -> list[Result]:
    """Of every experiment, in their order, the smallest preset first."""
    found = []
    for experiment in EXPERIMENTS:
        paths = [folder / f"{experiment.NAME}.json", *sorted(folder.glob(f"{experiment.NAME}-*.json"))]
        found += [Result.load(path) for path in paths if path.exists()]
    return found


def table(results: list[Result]) -> str:
    """Every claim with its verdict."""
    return "\n".join([HEADER, *(row for result in results for row in result.rows())])


def text(results: list[Result], page: Path) -> str:
    """What stands between the markers of the page."""
    parts = [table(results)]
    for experiment in EXPERIMENTS:
        mine = [result for result in results if result.experiment is experiment]
        if mine:
            parts.append(f"## {experiment.TITLE}")
        for result in mine:
            parts += [*result.heading(), result.section(page)]
    return "\n\n".join(parts)


def whole(results: Path, page: Path) -> str:
    """The page as it should be: what was written by hand around the markers stays."""
    before, _, rest = (page.read_text() if page.exists() else NO_PAGE).partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{page} lacks the lines {BEGIN} and {END} between which the results are written")
    return f"{before}{BEGIN}\n\n{text(results_in(results), page)}\n\n{END}{after}"


def write(results: Path, page: Path) -> None:
    """Put the page in order with the numbers."""
    written = whole(results, page)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(written)


def _between(page: Path, file: Path) -> str:
    """The way from the page to a file, as a link has it."""
    return os.path.relpath(file.resolve(), page.resolve().parent).replace(os.sep, "/")

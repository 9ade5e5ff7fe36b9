"""A sweep's folder: its description, its cells' run folders, and which of them failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedprune.errors import RunError
from fedprune.runs import RunFolder
from fedprune.study.grid import Cell, Grid
from fedprune.study.sweep_table import SeedRow, rows_of, run_of

SPECIFICATION = "sweep.json"
_PROGRESS = "progress.json"


def is_sweep(path: str | Path) -> bool:
    """Whether a folder is a sweep's."""
    return (Path(path) / SPECIFICATION).is_file()


def default_folder(grid: Grid) -> Path:
    """Name a sweep by what it is, so that the same command finds it again."""
    config = grid.base
    stem = "".join(c if c.isalnum() else "-" for c in f"{config.data.dataset}-{config.model.name}")
    return Path("sweeps") / f"{stem}-{grid.digest[:8]}"


@dataclass
class Sweep:
    """A sweep's folder.

    Attributes:
        path: of the folder.
        grid: what is swept over.
        errors: of the cells that failed, by name, each in one sentence.
        seconds: that were spent on the sweep so far.
    """

    path: Path
    grid: Grid
    errors: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def files(self) -> RunFolder:
        """Writes files atomically."""
        return RunFolder(self.path)

    @staticmethod
    def open(path: str | Path) -> Sweep:
        """Open the folder of a sweep that was begun.

        Raises:
            RunError: if there is none, or it is damaged.
            ConfigError: if it holds a configuration that is not allowed.
        """
        path = Path(path)
        if not is_sweep(path):
            raise RunError(f"{path} is not the folder of a sweep: it has no {SPECIFICATION}")
        folder = RunFolder(path)
        grid = Grid.from_json(folder.read_json(SPECIFICATION), str(path / SPECIFICATION))
        known = folder.read_json(_PROGRESS) if folder.has(_PROGRESS) else {}
        return Sweep(path, grid, dict(known.get("errors", {})), float(known.get("seconds", 0.0)))

    @staticmethod
    def of(grid: Grid, path: str | Path) -> Sweep:
        """Take up a sweep that was begun with the same grid, or plan one; nothing is written.

        Raises:
            RunError: if the folder holds something else.
        """
        path = Path(path)
        if is_sweep(path):
            found = Sweep.open(path)
            if found.grid.digest != grid.digest:
                raise RunError(f"{path} holds another sweep; name another folder with --out")
            return found
        if path.exists() and (not path.is_dir() or any(map(_is_foreign, path.iterdir()))):
            raise RunError(f"{path} is not empty and not a sweep; name another folder with --out")
        return Sweep(path, grid)

    def create(self) -> None:
        """Make the folder, unless it is there.

        Raises:
            RunError: if it cannot be made.
        """
        if is_sweep(self.path):
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot make the sweep's folder {self.path}: {error.strerror}"
            ) from None
        self.files.write_json(SPECIFICATION, self.grid.to_json())

    def folder(self, cell: Cell) -> RunFolder | None:
        """The run folder of a cell, if it was begun."""
        path = self.cell_path(cell)
        return RunFolder(path) if (path / "config.toml").is_file() else None

    def cell_path(self, cell: Cell) -> Path:
        """Where a cell's run lies."""
        return self.path / "cells" / cell.name

    def finished(self) -> list[tuple[Cell, int, RunFolder | None]]:
        """Every cell's seeds, each with its run if that is finished."""
        return [
            (cell, seed, run_of(cell, self.folder(cell), seed))
            for cell in self.grid.cells()
            for seed in range(cell.config.seed, cell.config.seed + cell.config.evaluate.seeds)
        ]

    def rows(self) -> list[SeedRow]:
        """Read every run of the grid."""
        return [
            row
            for cell in self.grid.cells()
            for row in rows_of(cell, self.folder(cell), self.errors.get(cell.name, ""))
        ]

    def note(self, cell: Cell, error: str, seconds: float) -> None:
        """Write down how a cell ended; "" where it succeeded."""
        self.errors.pop(cell.name, None)
        if error:
            self.errors[cell.name] = error
        self.seconds += seconds
        known = {"seconds": round(self.seconds, 3), "errors": self.errors}
        self.files.write_json(_PROGRESS, known)


def _is_foreign(item: Path) -> bool:
    """Whether a file is none that a process left which died while it began a sweep."""
    return not item.name.startswith(".")

"""Finding the files of a data set, and saying in one sentence where to get those that miss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedprune.errors import DataError


def require(root: str | Path, names: Sequence[str], *, dataset: str, source: str) -> list[Path]:
    """Give the paths of the files `names` under `root`.

    Args:
        root: the folder `data.root`.
        names: paths relative to it.
        dataset: whose files they are.
        source: where a person gets them.

    Raises:
        DataError: naming every file that is not there.
    """
    folder = Path(root).expanduser()
    paths = [folder / name for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if missing:
        raise DataError(
            f"dataset {dataset!r} needs {', '.join(missing)} under data.root = {str(root)!r}; "
            f"get them from {source}"
        )
    return paths


def require_any(root: str | Path, names: Sequence[str], *, dataset: str, source: str) -> list[Path]:
    """Give the paths of those of the files `names` that are under `root`: at least one.

    Raises:
        DataError: if none is there.
    """
    folder = Path(root).expanduser()
    paths = [path for path in (folder / name for name in names) if path.is_file()]
    if not paths:
        raise DataError(
            f"dataset {dataset!r} needs one of {', '.join(names)} under data.root = "
            f"{str(root)!r}; get them from {source}"
        )
    return paths


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: if it cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None

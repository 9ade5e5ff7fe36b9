"""Heart disease in four hospitals (Detrano et al. 1989): a federation by nature.

Every constant below is public: codes and units from the data's documentation, ranges from what
such measurements take in adults. Values outside a range are clipped to its ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedprune.data import files
from fedprune.data.groups import GroupColumn
from fedprune.data.holdout import hold_out_by_site
from fedprune.data.rows import Dataset, Index, Rows
from fedprune.data.tables import MISSING, Categorical, Column, Numeric, encode_row, feature_names
from fedprune.errors import DataError
from fedprune.randomness import SimulationRandomness

SOURCE = "https://archive.ics.uci.edu/dataset/45/heart+disease"
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
FILE_NAMES = tuple(f"processed.{hospital}.data" for hospital in HOSPITALS)
FILES = tuple(f"heart/{name}" for name in FILE_NAMES)
CLASS_NAMES = ("no disease", "disease")
SEX_NAMES = ("female", "male")
AGE_BANDS = ("under 50", "50 to 59", "60 and over")
AGE_BAND_STARTS = (50.0, 60.0)

COLUMNS: tuple[Column, ...] = (
    Numeric("age", 20, 90, "years", may_miss=False),
    Categorical("sex", ("0", "1"), may_miss=False),
    Categorical("chest pain", ("1", "2", "3", "4")),
    # A living adult's pressure or cholesterol is never 0: the hospitals wrote 0 for unknown.
    Numeric("resting blood pressure", 80, 220, "mmHg", zero_is_missing=True),
    Numeric("cholesterol", 100, 600, "mg/dl", zero_is_missing=True),
    Categorical("fasting blood sugar over 120 mg/dl", ("0", "1")),
    Categorical("resting electrocardiogram", ("0", "1", "2")),
    Numeric("maximum heart rate", 60, 220, "beats a minute"),
    Categorical("angina on exercise", ("0", "1")),
    Numeric("ST depression on exercise", -3, 7, "mm"),
    Categorical("slope of ST on exercise", ("1", "2", "3")),
    Numeric("vessels coloured by fluoroscopy", 0, 3, "count"),
    Categorical("thallium scan", ("3", "6", "7")),
)
FEATURE_NAMES = feature_names(COLUMNS)
AGE, SEX, DIAGNOSIS = 0, 1, 13


def heart(root: str | Path, *, seed: int) -> Dataset:
    """Load 920 patients [36 features in 0 to 1]; the label is whether any disease was found.

    A fifth of every hospital's patients is held out by the seed.

    Raises:
        DataError: if files are missing or a line does not fit the documented columns.
    """
    return _load(files.require(root, FILES, dataset="heart", source=SOURCE), seed)


def own_heart(root: str | Path, *, seed: int) -> Dataset:
    """Load the patients of whichever hospitals have their file under `root`.

    Sites keep their codes and names, and every hospital holds out the patients that it holds out
    among all four.

    Raises:
        DataError: if there is no file of any hospital, or a line does not fit.
    """
    return _load(files.require_any(root, FILES, dataset="heart", source=SOURCE), seed)


def _load(paths: Sequence[Path], seed: int) -> Dataset:
    tables = {FILE_NAMES.index(path.name): _read(path) for path in paths}
    sites = np.repeat(list(tables), [len(table) for table in tables.values()]).astype(np.int64)
    rows = _rows([patient for table in tables.values() for patient in table], sites)
    randomness = SimulationRandomness(seed).stream("hold out", "heart")
    train, test = hold_out_by_site(rows, HOSPITALS, randomness)
    return Dataset(
        name="heart",
        num_classes=2,
        input_shape=(len(FEATURE_NAMES),),
        train=train,
        test=test,
        input_unit="encoded feature in [0, 1]",
        site_names=HOSPITALS,
    )


def _read(path: Path) -> list[tuple[list[str], str]]:
    """Read one hospital: the cells of every patient and where they stand."""
    patients = []
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        cells = [_canonical(cell, where) for cell in line.split(",")]
        if len(cells) != len(COLUMNS) + 1:
            raise DataError(f"a patient must have 14 values, got {len(cells)} ({where})")
        patients.append((cells, where))
    if not patients:
        raise DataError(f"{path} holds no patients")
    return patients


def _canonical(cell: str, where: str) -> str:
    # The hospitals write one code as 1, 1.0 or 1.; numbers are compared, not spellings.
    text = cell.strip()
    if text == MISSING:
        return text
    try:
        return f"{float(text):.12g}"
    except ValueError:
        raise DataError(f"a value must be a number or ?, got {text!r} ({where})") from None


def _rows(patients: list[tuple[list[str], str]], sites: Index) -> Rows:
    encoded = [encode_row(COLUMNS, cells[:DIAGNOSIS], where) for cells, where in patients]
    labels = np.array([_label(cells[DIAGNOSIS], where) for cells, where in patients], dtype=int)
    ages = np.array([float(cells[AGE]) for cells, _ in patients])
    sexes = np.array([int(cells[SEX]) for cells, _ in patients])
    columns = {
        "class": (labels, CLASS_NAMES),
        "sex": (sexes, SEX_NAMES),
        "age": (np.searchsorted(AGE_BAND_STARTS, ages, side="right"), AGE_BANDS),
        "hospital": (sites, HOSPITALS),
    }
    return Rows(
        stored=np.array(encoded, dtype=np.float32),
        labels=labels.astype(np.int64),
        groups={
            name: GroupColumn(codes.astype(np.int64), names)
            for name, (codes, names) in columns.items()
        },
        sites=sites,
    )


def _label(diagnosis: str, where: str) -> int:
    if diagnosis not in ("0", "1", "2", "3", "4"):
        raise DataError(f"a diagnosis must be in 0 to 4, got {diagnosis!r} ({where})")
    return int(diagnosis != "0")

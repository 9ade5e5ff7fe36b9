"""Adult: income over 50,000 dollars in the 1994 US census (Becker & Kohavi 1996).

Every constant below is public: names and codes from the data's documentation, ranges from what
the census records (ages and capital gains are cut off at the top by the source). Of the fourteen
attributes thirteen become inputs: `fnlwgt` says how many people of the country a row stands for,
a weight of the sample and no property of a person, and is left out. Nobody holds rows by nature.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedprune.data import files
from fedprune.data.groups import GroupColumn
from fedprune.data.rows import Dataset, Rows
from fedprune.data.tables import Categorical, Column, Numeric, encode_rows, feature_names
from fedprune.errors import DataError

SOURCE = "https://archive.ics.uci.edu/dataset/2/adult"
FILES = ("adult/adult.data", "adult/adult.test")
CLASS_NAMES = ("50K or less", "over 50K")
LABELS = {"<=50K": 0, ">50K": 1, "<=50K.": 0, ">50K.": 1}  # the test file ends each in a dot
AGE_BANDS = ("under 30", "30 to 44", "45 to 59", "60 and over")
AGE_BAND_STARTS = (30.0, 45.0, 60.0)
SEXES = ("Female", "Male")
SEX_NAMES = ("female", "male")
RACES = ("White", "Black", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other")
COUNTRIES = (
    "United-States Cambodia England Puerto-Rico Canada Germany Outlying-US(Guam-USVI-etc) India "
    "Japan Greece South China Cuba Iran Honduras Philippines Italy Poland Jamaica Vietnam Mexico "
    "Portugal Ireland France Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary "
    "Guatemala Nicaragua Scotland Thailand Yugoslavia El-Salvador Trinadad&Tobago Peru Hong "
    "Holand-Netherlands"
)
WORK_CLASSES = (
    "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay Never-worked"
)
EDUCATIONS = (
    "Bachelors Some-college 11th HS-grad Prof-school Assoc-acdm Assoc-voc 9th 7th-8th 12th Masters "
    "1st-4th 10th Doctorate 5th-6th Preschool"
)
MARITAL_STATUSES = (
    "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent "
    "Married-AF-spouse"
)
OCCUPATIONS = (
    "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
    "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing Transport-moving "
    "Priv-house-serv Protective-serv Armed-Forces"
)
RELATIONSHIPS = "Wife Own-child Husband Not-in-family Other-relative Unmarried"

# By their place in a line, where place 2 is fnlwgt and place 14 the income.
COLUMNS: dict[int, Column] = {
    0: Numeric("age", 17, 90, "years", may_miss=False),
    1: Categorical("work class", tuple(WORK_CLASSES.split())),
    3: Categorical("education", tuple(EDUCATIONS.split()), may_miss=False),
    4: Numeric("level of education", 1, 16, "rank", may_miss=False),
    5: Categorical("marital status", tuple(MARITAL_STATUSES.split()), may_miss=False),
    6: Categorical("occupation", tuple(OCCUPATIONS.split())),
    7: Categorical("relationship", tuple(RELATIONSHIPS.split()), may_miss=False),
    8: Categorical("race", RACES, may_miss=False),
    9: Categorical("sex", SEXES, may_miss=False),
    10: Numeric("capital gain", 0, 99_999, "dollars", may_miss=False, logarithmic=True),
    11: Numeric("capital loss", 0, 5_000, "dollars", may_miss=False, logarithmic=True),
    12: Numeric("hours a week", 1, 99, "hours", may_miss=False),
    13: Categorical("native country", tuple(COUNTRIES.split())),
}
FEATURE_NAMES = feature_names(tuple(COLUMNS.values()))
AGE, RACE, SEX, INCOME = 0, 8, 9, 14


def adult(root: str | Path, *, seed: int) -> Dataset:  # noqa: ARG001 - the split is official
    """Load 32,561 training and 16,281 test rows [107 features in 0 to 1].

    The label is whether a person earns over 50,000 dollars a year.

    Raises:
        DataError: if files are missing or a line does not fit the documented columns.
    """
    train, test = files.require(root, FILES, dataset="adult", source=SOURCE)
    return Dataset(
        name="adult",
        num_classes=2,
        input_shape=(len(FEATURE_NAMES),),
        train=_rows(train),
        test=_rows(test),
        input_unit="encoded feature in [0, 1]",
    )


def _rows(path: Path) -> Rows:
    people, wheres = _read(path)
    kept = [[cells[place] for place in COLUMNS] for cells in people]
    stored = encode_rows(tuple(COLUMNS.values()), kept, wheres)  # refuses what does not fit
    labels = [_label(cells[INCOME], where) for cells, where in zip(people, wheres, strict=True)]
    ages = np.array([float(cells[AGE]) for cells in people])
    columns = {
        "class": (labels, CLASS_NAMES),
        "sex": ([SEXES.index(cells[SEX]) for cells in people], SEX_NAMES),
        "race": ([RACES.index(cells[RACE]) for cells in people], RACES),
        "age": (np.searchsorted(AGE_BAND_STARTS, ages, side="right"), AGE_BANDS),
    }
    return Rows(
        stored=stored,
        labels=np.array(labels, dtype=np.int64),
        groups={
            name: GroupColumn(np.array(codes, dtype=np.int64), names)
            for name, (codes, names) in columns.items()
        },
    )


def _read(path: Path) -> tuple[list[list[str]], list[str]]:
    """Read the cells of every person, and where each stands."""
    people, wheres = [], []
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("|"):  # the test file begins with a remark
            continue
        where = f"{path}, line {number}"
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != INCOME + 1:
            raise DataError(f"a person must have {INCOME + 1} values, got {len(cells)} ({where})")
        people.append(cells)
        wheres.append(where)
    if not people:
        raise DataError(f"{path} holds no people")
    return people, wheres


def _label(income: str, where: str) -> int:
    if income not in LABELS:
        raise DataError(f"income must be <=50K or >50K, got {income!r} ({where})")
    return LABELS[income]

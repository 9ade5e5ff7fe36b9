from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedprune import models

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
IMAGES = 500


@pytest.fixture(scope="module")
def first_images(data_root: Path) -> tuple[Tensor, Tensor]:
    with (data_root / "cifar-10-batches-py" / "test_batch").open("rb") as file:
        batch = pickle.load(file, encoding="latin1")
    pixels = np.asarray(batch["data"][:IMAGES]).reshape(-1, 3, 32, 32)
    inputs = (torch.from_numpy(pixels.copy()).float() / 255 - MEAN) / STD
    return inputs, torch.tensor(batch["labels"][:IMAGES])


# Over all 10,000 test images the counts are 9,173 and 9,339: the published 91.73 and 93.39 %.
@pytest.mark.parametrize(
    ("name", "file", "right"),
    [("resnet20", "resnet20-12fca82f.th", 455), ("resnet56", "resnet56-4bfd9763.th", 470)],
)
def test_public_weights_classify_as_many_images_as_their_author_found(
    data_root: Path, first_images: tuple[Tensor, Tensor], name: str, file: str, right: int
) -> None:
    model = models.load(name, weights=data_root / "weights" / file)
    inputs, labels = first_images
    with torch.inference_mode():
        predicted = torch.cat([model(batch).argmax(1) for batch in inputs.split(250)])
    assert int((predicted == labels).sum()) == right

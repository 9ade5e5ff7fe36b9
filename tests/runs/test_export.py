"""An exported program is the model at every batch size, or it is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedprune import models, pruning
from fedprune.errors import RunError
from fedprune.runs import Architecture
from fedprune.runs import export as exporting
from fedprune.runs.export import export_pt2


def pruned(name: str, shape: tuple[int, ...]) -> tuple[nn.Module, Architecture]:
    dense, layout = Architecture.dense(name, 10, shape).build()
    scores = torch.rand(len(layout), generator=torch.Generator().manual_seed(0))
    mask = pruning.select(scores, layout, keep_units=0.5)
    architecture = Architecture.dense(name, 10, shape).with_mask(mask)
    return pruning.shrink(dense, layout, mask), architecture


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mlp", (20,)), ("lenet", (1, 8, 8)), ("resnet20", (3, 16, 16)), ("resnet18", (3, 32, 32))],
)
def test_a_program_computes_what_the_pruned_model_computes_at_any_batch_size(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    model, architecture = pruned(name, shape)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    path = export_pt2(
        model, architecture.example_input, tmp_path / "new" / "m.pt2", architecture=architecture
    )
    assert [file.name for file in path.parent.iterdir()] == ["m.pt2"]
    extra = {"architecture.json": "", "versions.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    for batch in (1, 2, 33):
        inputs = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            torch.testing.assert_close(program(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    assert Architecture.from_json(extra["architecture.json"]) == architecture
    assert json.loads(extra["versions.json"])["torch"] == str(torch.__version__)
    assert not model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


class _Branching(nn.Module):
    """Decides by a value, which no fixed program can."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * 2 if float(inputs.sum()) > 0 else inputs * 3


class _OneBatchOnly(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(2, 3)


@pytest.mark.parametrize("module", [_Branching(), _OneBatchOnly()])
def test_what_torch_export_cannot_express_is_refused_in_one_line_and_leaves_no_file(
    tmp_path: Path, module: nn.Module
) -> None:
    with pytest.raises(RunError, match=rf"cannot express {type(module).__name__}: \w+") as refused:
        export_pt2(module.eval(), torch.zeros(1, 3), tmp_path / "m.pt2")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_program_that_computes_something_else_never_replaces_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.load("mlp", input_shape=(6,), seed=1)
    path = export_pt2(model, torch.zeros(1, 6), tmp_path / "m.pt2")
    good = path.read_bytes()
    other = models.load("mlp", input_shape=(6,), seed=2)
    real = exporting._export
    monkeypatch.setattr(exporting, "_export", lambda _m, x, name: real(other, x, name))
    with pytest.raises(RunError, match="does not compute what the model computes"):
        export_pt2(model, torch.zeros(1, 6), path)
    assert path.read_bytes() == good
    assert list(tmp_path.iterdir()) == [path]


def test_a_wrong_name_a_train_mode_and_a_place_that_cannot_be_written_are_refused(
    tmp_path: Path,
) -> None:
    model, example = models.load("mlp", input_shape=(6,)), torch.zeros(1, 6)
    with pytest.raises(RunError, match=r"must be named \*\.pt2, got .*m\.pt"):
        export_pt2(model, example, tmp_path / "m.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        export_pt2(model, example, tmp_path / "file" / "m.pt2")
    with pytest.raises(RunError, match="train mode"):
        export_pt2(model.train(), example, tmp_path / "m.pt2")

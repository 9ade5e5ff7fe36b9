"""A model as a torch.export program (.pt2): it runs without this package, at any batch size.

What is written is read back and compared with the model before the file gets its name, so a file
that is there is a file that works.
"""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fedprune.errors import RunError
from fedprune.runs.architecture import Architecture

T = TypeVar("T")

CHECKED_BATCHES = (1, 7)
TOLERANCE = 1e-5
"""Largest difference from the model's own outputs, relative to the largest of them."""

ARCHITECTURE_FILE = "architecture.json"
VERSIONS_FILE = "versions.json"


def export_pt2(
    model: nn.Module,
    example_input: Tensor,
    path: str | Path,
    *,
    architecture: Architecture | None = None,
) -> Path:
    """Write a model as a .pt2 program with a batch axis of any size.

    `torch.export.load(path).module()` gives the network back; the extra files "architecture.json"
    (empty object if none is given) and "versions.json" lie in the archive beside the weights.

    Args:
        model: in evaluation mode; it is not changed.
        example_input: [batch, ...], for shape and type.
        path: ends in .pt2; replaced if it is there, only once the new file was checked.
        architecture: what the model is, for the metadata.

    Returns:
        The path.

    Raises:
        RunError: if the name is not a .pt2, the model is in train mode, torch.export cannot
            express it, the written program computes something else, or it cannot be written.
    """
    target = Path(path)
    if target.suffix != ".pt2":
        raise RunError(f"an exported program must be named *.pt2, got {target}")
    if model.training:
        raise RunError("a model in train mode cannot be exported; call model.eval() first")
    name = type(model).__name__
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp.pt2")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        program = _quietly(lambda: _export(model, example_input, name))
        extra = _metadata(architecture)
        _quietly(lambda: torch.export.save(program, temporary, extra_files=dict(extra)))
        _check(temporary, model, example_input, extra, name)
        _flush(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


def _export(model: nn.Module, example_input: Tensor, name: str) -> ExportedProgram:
    # A batch of one would be taken for a constant; two examples stand for any number.
    example = example_input.detach()[:1].repeat(2, *[1] * (example_input.ndim - 1))
    batch = {0: Dim("batch", min=1)}
    try:
        return torch.export.export(model, (example,), dynamic_shapes=(batch,), strict=False)
    except Exception as error:  # what tracing raises cannot be listed
        raise RunError(f"torch.export cannot express {name}: {_one_line(error)}") from error


def _metadata(architecture: Architecture | None) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return {
        ARCHITECTURE_FILE: "{}" if architecture is None else architecture.to_json(),
        VERSIONS_FILE: json.dumps(versions),
    }


def _check(
    path: Path, model: nn.Module, example_input: Tensor, extra: Mapping[str, str], name: str
) -> None:
    """Load what was written and compare it with the model and the metadata."""
    found = dict.fromkeys(extra, "")
    try:
        loaded = _quietly(lambda: torch.export.load(path, extra_files=found).module())
        gaps = [_gap(loaded, model, _noise(example_input, size)) for size in CHECKED_BATCHES]
    except Exception as error:  # what a program raises cannot be listed
        raise RunError(
            f"the exported program of {name} does not run at every batch size: {_one_line(error)}"
        ) from error
    if not max(gaps) <= TOLERANCE:
        raise RunError(
            f"the exported program of {name} does not compute what the model computes: outputs "
            f"differ by {max(gaps):.2g} of the largest"
        )
    if {key: _text(value) for key, value in found.items()} != dict(extra):
        raise RunError(f"the exported program of {name} lost its metadata")


def _gap(loaded: nn.Module, model: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        wanted, found = model(inputs), loaded(inputs)
    if wanted.shape != found.shape:
        return float("inf")
    scale = max(float(wanted.abs().max()), torch.finfo(wanted.dtype).tiny)
    return float((wanted - found).abs().max()) / scale


def _noise(example_input: Tensor, size: int) -> Tensor:
    shape = (size, *example_input.shape[1:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(size))
    return noise.to(example_input.device, example_input.dtype)


def _quietly(action: Callable[[], T]) -> T:
    # torch.export deprecates its own internals while it runs; nothing a user can act on.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return action()


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _text(content: str | bytes) -> str:
    return content.decode() if isinstance(content, bytes) else content


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

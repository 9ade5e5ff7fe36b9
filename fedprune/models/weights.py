"""Reading weights from files without running anything that a file may contain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from fedprune.errors import ModelError
from fedprune.models.selection import ChannelSelection

PARALLEL_PREFIX = "module."  # written by torch.nn.DataParallel


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a flat state from `.th`, `.pth`, `.pt` (tensors only) or `.safetensors`.

    A checkpoint that holds the state under "state_dict" and the "module." prefix of data-parallel
    training are both understood.

    Raises:
        ModelError: if the file is missing, of another kind, damaged or holds no state.
    """
    file = Path(path)
    reader = READERS.get(file.suffix)
    if reader is None:
        raise ModelError(f"weights must be a file ending in {', '.join(READERS)}, got {file}")
    if not file.is_file():
        raise ModelError(f"there is no weights file {file}")
    try:
        content = reader(file)
    except Exception as error:  # what a damaged file makes a parser raise cannot be listed
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(f"cannot read the weights file {file}: {reason}") from error
    return _without_prefix(_flat_state(content, file))


def fitted_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Complete and check a state for `model`: every key, every shape, every value finite.

    Counters of batch norm and selection weights may be absent: the model's own stand in.

    Args:
        model: the network the state is meant for; it is left as it is.
        state: names to tensors as read from a file.
        source: the file, for error messages.

    Raises:
        ModelError: naming the first key that is missing, unknown, misshapen or not finite.
    """
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    fixed = _selection_keys(model)
    unknown = [name for name in state if name not in own]
    if unknown:
        raise ModelError(f"{source} has {_listed(unknown)}, which the model has not")
    missing = [name for name in own if name not in state and not _may_be_absent(name, fixed)]
    if missing:
        raise ModelError(f"{source} lacks {_listed(missing)}, which the model needs")
    for name, tensor in state.items():
        _check_tensor(name, tensor, own[name], source)
        if name in fixed and not torch.equal(tensor.to(own[name].dtype), own[name]):
            raise ModelError(f"{source} changes {name}, a fixed selection of channels")
    return {**own, **state}


def _read_torch(file: Path) -> object:
    content: object = torch.load(file, map_location="cpu", weights_only=True)
    return content


def _read_safetensors(file: Path) -> object:
    return safetensors.torch.load_file(file, device="cpu")


READERS: dict[str, Callable[[Path], object]] = {
    ".th": _read_torch,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".safetensors": _read_safetensors,
}


def _flat_state(content: object, file: Path) -> dict[str, Tensor]:
    inner = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(inner, Mapping) or not inner:
        raise ModelError(f"the weights file {file} holds no state: a table of named tensors")
    for name, tensor in inner.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelError(
                f"the weights file {file} must hold named tensors only, got "
                f"{type(tensor).__name__} at {name!r}"
            )
    return dict(inner)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if not all(name.startswith(PARALLEL_PREFIX) for name in state):
        return state
    return {name.removeprefix(PARALLEL_PREFIX): tensor for name, tensor in state.items()}


def _selection_keys(model: nn.Module) -> set[str]:
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, ChannelSelection)
    }


def _may_be_absent(name: str, fixed: set[str]) -> bool:
    return name in fixed or name.endswith("num_batches_tracked")


def _check_tensor(name: str, tensor: Tensor, own: Tensor, source: str) -> None:
    if tensor.shape != own.shape:
        raise ModelError(
            f"{name} in {source} has shape {list(tensor.shape)}, the model wants {list(own.shape)}"
        )
    if tensor.is_floating_point() != own.is_floating_point():
        raise ModelError(f"{name} in {source} is {tensor.dtype}, the model wants {own.dtype}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{name} in {source} holds values that are not finite")


def _listed(names: list[str], limit: int = 3) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")

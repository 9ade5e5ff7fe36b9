"""A frozen 1x1 convolution that copies channels: the parameter-free shortcut as a plain layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn


class ChannelSelection(nn.Conv2d):
    """Copy every input channel to one output channel, `offset` further on, at every `stride`.

    He et al. 2016 (section 4.2, option A) subsample the map and pad the missing channels with
    zeros. Written as a convolution of zeros and ones the shortcut gives the same numbers, and a
    tool that removes channels keeps track of which input lands where, which it cannot do through
    a pad. The weight has shape [out_channels, in_channels, 1, 1] and is never trained: whatever
    parameter takes its place (a sliced one, say) is frozen too.

    `is_selection` tells cost counters that these zeros and ones are neither parameters nor
    multiplications.
    """

    is_selection: ClassVar[bool] = True

    # torch.fx keeps a module whole only if its class says that it lives in torch.nn; this one is
    # a plain convolution to every tool that reads a graph, so it says so as well.
    __module__ = nn.Conv2d.__module__

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, offset: int) -> None:
        """Select so that output `offset + i` is input i; all other outputs are zero.

        Raises:
            ValueError: if the inputs do not fit between `offset` and `out_channels`.
        """
        if not 0 <= offset <= out_channels - in_channels:
            raise ValueError(
                f"offset must be in [0, {out_channels - in_channels}], got {offset} "
                f"for {in_channels} channels into {out_channels}"
            )
        super().__init__(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        with torch.no_grad():
            self.weight.zero_()
            channels = torch.arange(in_channels)
            self.weight[offset + channels, channels] = 1.0

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter as `torch.nn.Module` does, frozen."""
        frozen = None if param is None else nn.Parameter(param.detach(), requires_grad=False)
        super().register_parameter(name, frozen)

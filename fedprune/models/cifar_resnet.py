"""Residual networks for 32x32 images (He et al. 2016, section 4.2), shortcuts of option A.

The state keys are those of the widely used public weights (github.com/akamaster), where the
shortcut has no state of its own.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedprune.errors import ModelError
from fedprune.models.selection import ChannelSelection

WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Build a block; where the shape changes, the shortcut selects channels and pixels."""
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            offset = (out_channels - in_channels) // 2
            self.shortcut = ChannelSelection(
                in_channels, out_channels, stride=stride, offset=offset
            )
        self.relu2 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Compute [batch, out_channels, H/stride, W/stride] from [batch, in_channels, H, W]."""
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(maps)))))
        skipped = maps if self.shortcut is None else self.shortcut(maps)
        activated: Tensor = self.relu2(residual + skipped)
        return activated


class CifarResNet(nn.Module):
    """A residual network of 6 * blocks_per_stage + 2 layers in three stages of 16, 32, 64."""

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, *, blocks_per_stage: int
    ) -> None:
        """Build the network for inputs [C, H, W].

        Raises:
            ModelError: if the input is not an image.
        """
        super().__init__()
        if len(input_shape) != 3:
            raise ModelError(f"a CIFAR resnet wants input_shape [C, H, W], got {list(input_shape)}")
        self.conv1 = nn.Conv2d(input_shape[0], WIDTHS[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu1 = nn.ReLU()
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks_per_stage, stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks_per_stage, stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks_per_stage, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(WIDTHS[2], num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [batch, num_classes] of images [batch, C, H, W]."""
        maps = self.relu1(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        logits: Tensor = self.linear(self.flatten(self.pool(maps)))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    later = [BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *later)


def _initialise(model: nn.Module) -> None:
    # He et al. 2015; the selections are fixed and stay as they are.
    for module in model.modules():
        if isinstance(module, ChannelSelection):
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    for block in blocks:
        # A residual branch scaled by 1 / sqrt(depth) keeps the outputs of an untrained deep network
        # of order 1, as batch statistics would (De & Smith 2020, on batch norm in residual nets).
        nn.init.constant_(block.bn2.weight, len(blocks) ** -0.5)

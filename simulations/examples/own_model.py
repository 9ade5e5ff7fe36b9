"""A network of your own: `fedprune simulate own_model.toml`, run from this folder.

`name = "own_model:build"` calls the function below with the shape of one example and the number of
classes. Give every use of an activation a module of its own and change nothing in place, and every
part of fedprune can follow: channels that a skip connection ties together are removed together.
"""

import torch
from torch import nn


class Block(nn.Module):
    """Two convolutions around which the input is carried and added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu2 = nn.ReLU()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        residual: torch.Tensor = self.conv2(self.relu1(self.conv1(maps)))
        return self.relu2(maps + residual)


def build(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A small residual network for images [C, H, W]."""
    stem = [nn.Conv2d(input_shape[0], 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * 2 * 2, num_classes)]
    return nn.Sequential(*stem, Block(16), Block(16), *head)

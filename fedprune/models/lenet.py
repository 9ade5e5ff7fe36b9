"""A small convolutional network in the manner of LeNet-5."""

from __future__ import annotations

from torch import Tensor, nn

from fedprune.errors import ModelError

SMALLEST_SIDE = 4  # two poolings by two must leave a pixel


class LeNet(nn.Module):
    """Two 3x3 convolutions with pooling and two dense layers (after LeCun et al. 1998).

    It takes images of any channels and any sides of at least four pixels.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        channels: tuple[int, int] = (16, 32),
        hidden: int = 64,
    ) -> None:
        """Build the network for inputs [C, H, W].

        Raises:
            ModelError: if the input is not an image or is too small.
        """
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST_SIDE:
            raise ModelError(
                f"lenet wants input_shape [C, H, W] with sides of at least {SMALLEST_SIDE}, "
                f"got {list(input_shape)}"
            )
        depth, height, width = input_shape
        first, second = channels
        self.conv1 = nn.Conv2d(depth, first, kernel_size=3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, kernel_size=3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(second * (height // 2 // 2) * (width // 2 // 2), hidden)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [batch, num_classes] of images [batch, C, H, W]."""
        maps = self.pool1(self.relu1(self.conv1(images)))
        maps = self.pool2(self.relu2(self.conv2(maps)))
        hidden = self.relu3(self.fc1(self.flatten(maps)))
        logits: Tensor = self.fc2(hidden)
        return logits

"""Networks by name - small ones, torchvision's, a user's own - and safe loading of weights."""

from fedprune.models.selection import ChannelSelection
from fedprune.models.torchvision_names import torchvision_names
from fedprune.models.weights import read_state
from fedprune.models.zoo import default_input_shape, load, names

__all__ = [
    "ChannelSelection",
    "default_input_shape",
    "load",
    "names",
    "read_state",
    "torchvision_names",
]

"""Small named networks and safe loading of their weights."""

from fedprune.models.selection import ChannelSelection
from fedprune.models.weights import read_state
from fedprune.models.zoo import default_input_shape, load, names

__all__ = ["ChannelSelection", "default_input_shape", "load", "names", "read_state"]

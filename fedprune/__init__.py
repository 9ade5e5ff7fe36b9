"""Prune a neural network by the private votes of clients who will not share their data."""

__version__ = "0.1.0"

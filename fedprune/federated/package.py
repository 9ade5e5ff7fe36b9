"""Which code answers: a digest over fedprune's own source, compared before anything is spent."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib import resources

from fedprune import __version__

_SUFFIXES = (".py", ".toml")  # what every way of shipping the package carries


@lru_cache(maxsize=1)
def package_hash() -> str:
    """SHA-256 over the names and contents of the package's source files."""
    digest = hashlib.sha256()
    for name, content in sorted(_sources(resources.files("fedprune"), "")):
        for part in (name.encode(), content):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def package_name() -> str:
    """Name version and source for people, as 0.1.0 (source 3fa41c0b)."""
    return f"{__version__} (source {package_hash()[:8]})"


def _sources(folder: resources.abc.Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found = []
    for item in folder.iterdir():
        name = f"{prefix}{item.name}"
        if item.is_dir():
            found += _sources(item, f"{name}/")
        elif item.name.endswith(_SUFFIXES):
            found.append((name, item.read_bytes()))
    return found

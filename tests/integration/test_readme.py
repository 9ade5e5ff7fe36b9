"""What the README shows runs."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent.parent / "README.md"


def test_the_python_example_runs() -> None:
    example = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    space: dict[str, object] = {}
    exec(compile(example.group(1), "README.md", "exec"), space)
    assert len(space["layout"]) == 112  # type: ignore[arg-type]
    assert len(bytes(space["report"])) == 2  # type: ignore[call-overload]


def test_the_table_of_configs_is_complete() -> None:
    text = README.read_text(encoding="utf-8")
    for path in (README.parent / "configs").glob("*.toml"):
        assert f"configs/{path.name}" in text

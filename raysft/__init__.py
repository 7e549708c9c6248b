"""raysft: supervised fine-tuning in bulk. One YAML, a Ray cluster, Arrow tables, a study and a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysft.notebook import load

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # when it is asked for: `import raysft` stays light
        from raysft.notebook import load

        return load
    raise AttributeError(f"module 'raysft' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

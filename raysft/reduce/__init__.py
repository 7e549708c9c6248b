"""From committed results to tables."""

from raysft.reduce.run import Reduced, reduce_sweep

__all__ = ["Reduced", "reduce_sweep"]

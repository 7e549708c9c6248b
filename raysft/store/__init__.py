"""Ground floor: where results and checkpoints lie, how they are committed, what their columns mean."""

"""The training loop: loss, optimiser, ranks."""

"""Base models: loading, LoRA, layer names, and the quickstart's own tiny ones."""

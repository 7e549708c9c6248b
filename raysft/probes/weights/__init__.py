"""How far weights moved from the base: every tensor, layer and module, in memory or streamed from folders."""

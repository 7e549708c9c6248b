"""lm-evaluation-harness on a model that is already in memory."""

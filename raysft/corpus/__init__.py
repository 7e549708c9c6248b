"""Text: where rows come from, how they become prompts, tokens and batches."""

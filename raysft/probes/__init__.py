"""What happens inside: perplexity, weights, geometry, likelihood."""

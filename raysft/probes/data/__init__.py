"""Properties of datasets: under a base model, of the text alone, and of what they share with benchmarks."""

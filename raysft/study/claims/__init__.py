"""The findings of arXiv 2506.14681, each held against a study by one criterion, the same for every study."""

"""The findings of arXiv 2506.14681, each held against a study by a criterion that was fixed before looking."""

"""What an experiment is: the typed YAML, the grid, the keys and the plan."""

"""What the commands show of a sweep: its plan, its costs, how far it is, the jobs of a cluster."""

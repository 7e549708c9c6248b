"""Ray job: assemble a sweep's results into tables. `ray job submit --working-dir . -- python jobs/reduce.py SWEEP`"""

from raysft.cli import job

if __name__ == "__main__":
    job("reduce")

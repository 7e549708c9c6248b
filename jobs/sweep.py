"""Ray job: run a sweep to the end. `ray job submit --working-dir . -- python jobs/sweep.py sweeps/quickstart.yaml`"""

from raysft.cli import job

if __name__ == "__main__":
    job("run")

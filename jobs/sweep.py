"""Ray job: run a sweep to the end. `ray job submit --working-dir . -- python jobs/sweep.py sweeps/quickstart.yaml`"""

import sys

from raysft.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:]])

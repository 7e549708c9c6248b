"""Ray job: assemble a sweep's results into tables. `ray job submit --working-dir . -- python jobs/reduce.py SWEEP`"""

import sys

from raysft.cli import app

if __name__ == "__main__":
    app(["reduce", *sys.argv[1:]])

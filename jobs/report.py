"""Ray job: study and report of a sweep's tables. `ray job submit --working-dir . -- python jobs/report.py SWEEP`"""

import sys

from raysft.cli import app

if __name__ == "__main__":
    app(["report", *sys.argv[1:]])

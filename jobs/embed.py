"""Ray job: hidden states and their dimensions. `ray job submit --working-dir . -- python jobs/embed.py SWEEP`"""

import sys

from raysft.cli import app

if __name__ == "__main__":
    app(["embed", *sys.argv[1:]])

"""Ray job: hidden states and their dimensions. `ray job submit --working-dir . -- python jobs/embed.py SWEEP`"""

from raysft.cli import job

if __name__ == "__main__":
    job("embed")

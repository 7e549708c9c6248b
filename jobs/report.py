"""Ray job: study and report of a sweep's tables. `ray job submit --working-dir . -- python jobs/report.py SWEEP`"""

from raysft.cli import job

if __name__ == "__main__":
    job("report")

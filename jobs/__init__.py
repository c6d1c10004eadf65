"""Entry points, one a job: `python -m jobs.NAME`."""

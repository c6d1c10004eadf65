"""The measurements of jobs.benchmark, one module a kind, and the table that they fill."""

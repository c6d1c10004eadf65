"""The steps of jobs.reproduce: prerequisites, trainings, predictions, baselines."""

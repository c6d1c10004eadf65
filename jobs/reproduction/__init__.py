"""The steps of jobs.reproduce: prerequisites, trainings, upscaling, predictions, baselines, scores."""

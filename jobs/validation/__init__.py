"""The parts of jobs.validate: packs with known truth, biases, and the table of what the verdicts are worth."""

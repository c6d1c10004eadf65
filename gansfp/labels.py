"""The integer labels of real slices: used (members of the training data), not used (non-members), unknown."""

USED, NOT_USED, UNKNOWN = 1, 0, -1

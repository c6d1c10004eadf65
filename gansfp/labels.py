"""The label of a real slice, as numbers in arrays: used (a member of the training set), not used, unknown."""

USED, NOT_USED, UNKNOWN = 1, 0, -1

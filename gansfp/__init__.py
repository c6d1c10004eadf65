"""gansfp: which real slices trained a generator, and which generator made a slice, from files alone."""

"""The report: one HTML page for a person who is no programmer."""

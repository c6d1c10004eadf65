"""The collection DATA: layout, catalog of the images, groups, duplicates, truth files, submission format."""

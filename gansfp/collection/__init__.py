"""The collection DATA: its layout, the catalog of its images, duplicates, truth files, the submission format."""

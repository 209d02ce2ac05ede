"""Progress on stderr, the run summary and the JSON run report."""

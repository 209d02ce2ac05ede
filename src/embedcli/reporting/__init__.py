"""What a run tells people: progress, summary and the run report."""

"""Progress of a run: what is counted, how it is estimated, and how it is drawn."""

from embedcli.reporting.progress.reporter import ProgressReporter, ProgressStyle

__all__ = ["ProgressReporter", "ProgressStyle"]

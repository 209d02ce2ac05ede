"""Progress of a run: what is counted, how it is estimated, and how it is drawn."""

from embedcli.reporting.progress.reporter import SHOW_AFTER_SECONDS, ProgressReporter, ProgressStyle

__all__ = ["SHOW_AFTER_SECONDS", "ProgressReporter", "ProgressStyle"]

"""Estimate rows, tokens, output size, time and cost of a job without writing anything (`embedcli plan`)."""

from embedcli.estimate.estimate import EstimateOptions, estimate_job

__all__ = ["EstimateOptions", "estimate_job"]

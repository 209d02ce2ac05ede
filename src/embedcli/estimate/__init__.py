"""What a job would read, write, take and cost, without writing anything.

estimate(job, Wanted(sample=1000, price_per_mtok=0.02), notify)     a dict of JSON values
"""

from embedcli.estimate.estimate import EstimateOptions, estimate_job

__all__ = ["EstimateOptions", "estimate_job"]

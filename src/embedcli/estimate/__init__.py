"""What a job would read, write, take and cost, without writing anything.

estimate(job, Wanted(sample=1000, price_per_mtok=0.02), notify)     a dict of JSON values
"""

from embedcli.estimate.estimate import Wanted, estimate

__all__ = ["Wanted", "estimate"]

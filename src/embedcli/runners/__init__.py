"""Run a job: in this process, in one process per device, on a Ray cluster, or in shards.

Every runner does the same with a partition of the input: read, encode, write part files, record that it is complete.
"""

from embedcli.runners.context import EncoderLoader, Notify
from embedcli.runners.merge import merge_shards
from embedcli.runners.run_job import execute_job

__all__ = ["EncoderLoader", "Notify", "execute_job", "merge_shards"]

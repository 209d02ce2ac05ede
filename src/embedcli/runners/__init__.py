"""The wiring, three times: in this process, in one process per device, on a Ray cluster.

All of them do the same to a share of the input: read, encode, write parts, seal. They differ in who does it.
"""

from embedcli.runners.context import EncoderLoader, Notify
from embedcli.runners.run_job import execute_job, merge_shards

__all__ = ["EncoderLoader", "Notify", "execute_job", "merge_shards"]

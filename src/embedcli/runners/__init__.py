"""The wiring, three times: in this process, in one process per device, on a Ray cluster.

All of them do the same to a share of the input: read, encode, write parts, seal. They differ in who does it.
"""

from embedcli.runners.choice import merge, run
from embedcli.runners.running import Load, Notify

__all__ = ["Load", "Notify", "merge", "run"]

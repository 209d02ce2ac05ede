"""Load finished outputs into databases, verify them there and search them, through one base class of targets."""

from embedcli.databases.address import DEFAULT_TABLE, TargetAddress, connect, is_target_address, parse_target

__all__ = ["DEFAULT_TABLE", "TargetAddress", "connect", "is_target_address", "parse_target"]

"""Measuring: embedcli beside other libraries, each run a process of its own, and what its memory and budgets do."""

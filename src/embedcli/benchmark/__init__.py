"""`embedcli bench`: embedcli next to other libraries on the user's rows, each run in a process of its own."""

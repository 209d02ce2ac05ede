"""embedcli: batch text embedding that loses nothing and hides nothing."""

__version__ = "0.1.0"

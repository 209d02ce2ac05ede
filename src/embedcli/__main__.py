"""Start of the program: `embedcli` and `python -m embedcli`."""

from __future__ import annotations

from embedcli.core.signals import exit_at_once, set_stop_handler


def main() -> None:
    """Run the program. Signals end it at once while its modules are imported."""
    set_stop_handler(exit_at_once)
    from embedcli import cli

    cli.main()


if __name__ == "__main__":
    main()

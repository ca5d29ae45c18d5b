"""`fastkd`, and `python -m fastkd`."""

import signal


def main() -> None:
    """Loads the commands and runs one. While they are loaded, before they know how to stop, Ctrl-C ends the process at once."""
    own = signal.getsignal(signal.SIGINT)
    if own is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from fastkd.cli import main as run

    signal.signal(signal.SIGINT, own)
    run()


if __name__ == "__main__":
    main()

"""The console script. Small, so that an interrupt while the rest is imported ends like any other."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that ``sys.argv`` holds, and leave with its exit code."""
    try:
        import signal

        from cli import output

        signal.signal(signal.SIGTERM, output.terminate)
        output.prepare_streams()
        from cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        import signal  # the interrupt may have come before the first import

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would end the sentence with a traceback
        from cli import output

        code = output.interrupted(sys.argv[1:])
    sys.exit(code)


if __name__ == "__main__":
    main()

"""``zfkit`` and ``python -m zfkit``: the command line, which ends in one line whenever it is interrupted."""

from __future__ import annotations

import _thread
import os
import shlex
import signal
import sys
import threading
import warnings
from typing import Any, NoReturn


def main() -> NoReturn:
    """Run the command that the shell gave, and end the process with its exit code; after Ctrl-C that is 130."""
    begun = asked = False

    def hear(number: int, frame: Any) -> None:
        nonlocal asked
        if not begun or asked:  # there is nothing to tidy up, or that takes too long
            _end(130, said=False)
        asked = True
        raise KeyboardInterrupt

    def again(lost: Any) -> None:
        """An interrupt that comes while an object is deleted would be printed there, and lost."""
        if asked and isinstance(lost.exc_value, KeyboardInterrupt):
            threading.Timer(0.1, _thread.interrupt_main).start()
        else:
            sys.__unraisablehook__(lost)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is for jobs in the background
        signal.signal(signal.SIGINT, hear)
        sys.unraisablehook = again
    code: Any = None
    try:
        from .cli import main as run

        warnings.formatwarning = lambda message, *_, **__: f"zfkit: {message}\n"
        begun = True
        code = run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is done, whatever comes while Python ends
    except SystemExit as stop:  # argparse's
        code = stop.code
    except BaseException:  # libraries make many things of an interrupt
        if not asked:
            raise
    if asked and code != 0:
        _end(130, said=code == 130)
    sys.exit(code)


def _end(code: int, said: bool) -> NoReturn:
    """End at once: on their way out, libraries would print where they were interrupted."""
    if not said:
        again = f"zfkit: interrupted; again: zfkit {shlex.join(sys.argv[1:])}\n"
        os.write(2, again.encode(errors="backslashreplace"))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()

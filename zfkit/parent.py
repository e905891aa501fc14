"""A worker that ends with the process that started it.

Nothing heavy is imported here, so that a worker can watch from its first moment: torch takes seconds to import, and
much longer on a busy machine.
"""

from __future__ import annotations

import os
import threading
import time


def end_with(parent: int) -> None:
    """See to it that this process, a worker, ends when the one that started it does, however that comes to its end."""

    def watch() -> None:
        while os.getppid() == parent:  # another process adopts a child whose parent has ended
            time.sleep(0.5)
        os._exit(1)  # its kernel, which watches its own parent, ends after it

    threading.Thread(target=watch, daemon=True).start()

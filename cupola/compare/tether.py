"""`python -m cupola.compare.tether ARGUMENTS...`: the command line, tied to the process that started it.

Standard input is a pipe that the starter never writes to. When the starter dies, by whatever signal, the
pipe closes and this process gets a SIGTERM: a run finishes its step, saves, and leaves its folder free for
the next start. Works wherever there are pipes; costs one sleeping thread.
"""

import os
import runpy
import signal
import threading


def follow(descriptor: int) -> None:
    """Wait until the other end of a pipe closes, then ask this process to stop."""
    os.read(descriptor, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=follow, args=(0,), daemon=True).start()
    runpy.run_module("cupola", run_name="__main__", alter_sys=True)

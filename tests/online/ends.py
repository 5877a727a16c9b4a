"""How a process can end after it has answered: code that follows a definition of `work(k)`, which answers some calls
and writes the id of each to stdout when it has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

IMPORTS = """
import asyncio, concurrent.futures, multiprocessing, os, signal, sys, threading, time

def answered(name):
    os.write(1, f"{name}\\n".encode())
"""

ENDS: Mapping[str, str] = {
    "returns": "work(0)",
    "exception": "work(0); raise RuntimeError('the application failed')",
    "sys.exit": "work(0); sys.exit(3)",
    "SIGINT": "work(0); os.kill(os.getpid(), signal.SIGINT); signal.pause()",
    "SIGTERM of a script": "work(0); os.kill(os.getpid(), signal.SIGTERM); signal.pause()",
    "SIGTERM of an asyncio server": """
async def serve():
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await asyncio.gather(asyncio.to_thread(work, 0), asyncio.to_thread(work, 1))
    os.kill(os.getpid(), signal.SIGTERM)
    await stopped.wait()

asyncio.run(serve())
""",
    "SIGKILL": "work(0); os.kill(os.getpid(), signal.SIGKILL)",
    "os._exit": "work(0); os._exit(0)",
    "os.fork": """
work(0)
children = []
for k in (1, 2):
    child = os.fork()
    if child == 0:
        work(k)
        if k == 1:
            os._exit(0)
        sys.exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
""",
    "multiprocessing.Process": """
work(0)
context = multiprocessing.get_context("fork")
children = [context.Process(target=work, args=(k,)) for k in (1, 2)]
for child in children:
    child.start()
for child in children:
    child.join()
""",
    "multiprocessing.Pool, terminated": """
with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map(work, [0, 1])
""",
    "ProcessPoolExecutor": """
work(0)
with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    list(pool.map(work, [1, 2]))
""",
    "a thread that goes on": """
began = threading.Event()

def go_on():
    work(0)
    began.set()
    threading.main_thread().join()
    work(1)  # a graph has no executor any more then, and answers nothing

threading.Thread(target=go_on).start()
began.wait()
""",
}


def run_to_its_end(code: str, **environment: str) -> tuple[set[str], str]:
    """Run a program; answers the ids that it has answered, and what it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS + code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )
    return set(done.stdout.split()), done.stderr

"""vLLM's server on the CPU, whose engine process does not outlive it: `python -m serving.launch`, arguments as vLLM's own.

vLLM leaves its engine process running when its server is killed. Python's multiprocessing imports the main module again in every
process that it spawns, before anything else: so each asks here for a death signal.
"""

import ctypes
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1

if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")

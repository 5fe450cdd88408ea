"""Processes of their own in which tests train: forked from a server that has loaded what takes seconds, so that each begins at once.

The server is a process of its own too: none of the state of the tests' process is in what it forks.
"""

import multiprocessing

fresh = multiprocessing.get_context("forkserver")
fresh.set_forkserver_preload(["tests.loaded"])

"""Starts the processes of one run, as torchrun does, and says in one line what ended one of them.

torchrun itself ends with a traceback of its own and a summary of processes, under which the line that a person needs is lost.
"""

import logging
import sys
from pathlib import Path
from signal import SIGTERM

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from pipeline.console import say

if __name__ == "__main__":
    logging.disable()  # of this process; those that it starts speak for themselves
    try:
        run(get_args_parser().parse_args())
    except ChildFailedError as error:
        told = [failure.message for failure in error.failures.values() if Path(failure.error_file).is_file()]
        # SIGTERM is what the others get from here.
        killed = sorted((failure.exitcode == -SIGTERM, rank) for rank, failure in error.failures.items() if failure.exitcode < 0)
        if told:
            say(f"error: {told[0]}")
        elif killed:
            rank = killed[0][1]
            say(f"error: process {rank} of the run was ended by {error.failures[rank].signal_name()}")
        sys.exit(1)

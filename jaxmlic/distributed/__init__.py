"""Several processes as one program: how they find each other, agree, wait for each other, and end together.

One process is the rule, and everything here does nothing then. With several, all run the same code on the same global
arrays; process 0 alone writes files (`storage.replacing`) and prints to the terminal, the others print errors.

place      this process's number
joining    how they find each other
agreement  waiting, comparing, stopping at one place
ending     how one ends, and the others with it
"""

from jaxmlic.distributed.agreement import Stop, all_or_none, check_same, stopped_status, texts, wait_for_all
from jaxmlic.distributed.ending import all_fail, complain, describe_loss, end_all, leave
from jaxmlic.distributed.joining import start
from jaxmlic.distributed.place import count, index, is_main

__all__ = [
    "Stop",
    "all_fail",
    "all_or_none",
    "check_same",
    "complain",
    "count",
    "describe_loss",
    "end_all",
    "index",
    "is_main",
    "leave",
    "start",
    "stopped_status",
    "texts",
    "wait_for_all",
]

"""`launch.py REPORT COMMAND…`: run a command, and write its wait status and peak memory as JSON.

Linux counts what a process held before it became another program, the memory of its parent at the time of the fork
included, so a peak is only true where the parent is small: this one imports next to nothing.
"""

import json
import os
import sys


def main(report: str, command: list[str]) -> None:
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    with open(report, "w") as file:
        json.dump({"status": status, "peak": usage.ru_maxrss * 1024}, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

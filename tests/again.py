"""The suite again and again: which tests fail by chance, and how often.

    python -m tests.again 20 [pytest arguments]

Each time in a process of its own, on two cores as `make test`. Ends with 1 if any test failed in any of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter

FAILED = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", re.MULTILINE)


def failures(output: str) -> list[str]:
    """Names of the tests that pytest's short summary calls failed."""
    return FAILED.findall(output)


def main(times: int, arguments: list[str]) -> int:
    """Run the suite `times` times, say how each ended, and count the failures of each test."""
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-rfE", "--tb=no", *arguments]
    counted: Counter[str] = Counter()
    broken = 0
    for number in range(1, times + 1):
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        lines = (done.stdout + done.stderr).strip().splitlines()
        counted.update(set(failures(done.stdout)))
        broken += done.returncode != 0
        print(f"{number} of {times}: {lines[-1] if lines else f'exit {done.returncode}'}", flush=True)
    print(f"{times - broken} of {times} runs were green")
    for name, count in counted.most_common():
        print(f"  {count} of {times}: {name}")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

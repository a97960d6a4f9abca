"""What a process of a test has printed so far."""

import subprocess


def read_until(process: "subprocess.Popen[str]", words: str, times: int = 1) -> str:
    """Return its lines, to that in which words stand for so many times. It fails where the process ends before."""
    assert process.stdout is not None
    seen = ""
    while seen.count(words) < times:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    return seen

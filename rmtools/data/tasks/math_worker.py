"""The process that runs math-verify, started by ``checker.py`` as a script: JSON lines in, JSON lines out.

It says ``"ready"`` or what is missing, then answers ``[reference, answer]`` by true or false. Only the LaTeX
grammar is used: math-verify's reader of plain expressions goes through sympy's ``parse_expr``, which evaluates
what it reads. The caller bounds the time; memory is bounded here, and an orphan ends by its alarm.
"""

import json
import logging
import signal
import sys

MEMORY = 2 << 30


def limit_memory() -> None:
    """Allow ``MEMORY`` bytes more than are in use, where the system can be told."""
    try:
        import resource

        import psutil

        soft = psutil.Process().memory_info().vms + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (soft, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, OSError, ValueError):
        pass


def right(reference: str, answer: str) -> bool:
    """Return math-verify's verdict, the reference first: its comparison is not symmetric."""
    from math_verify import LatexExtractionConfig, parse, verify

    gold, found = (
        parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)
        for text in (reference, answer)
    )
    return bool(verify(gold, found, timeout_seconds=None))


def main() -> None:
    """Answer until the input ends."""
    logging.disable(logging.CRITICAL)
    try:
        right("1", "1")
    except ImportError as error:
        print(json.dumps(str(error)), flush=True)
        return
    limit_memory()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        signal.alarm(int(sys.argv[1]))
        try:
            verdict = right(*json.loads(line))
        except Exception:
            verdict = False
        print(json.dumps(verdict), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    main()

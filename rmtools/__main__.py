"""``python -m rmtools``: the command line, also under ``accelerate launch -m rmtools``."""

from rmtools.cli.main import run

if __name__ == "__main__":
    run()

"""From nothing to a trained, audited and sampled reward model: every stage is a command you can run alone.

    python recipes/quickstart.py --out runs/quickstart

Each stage's command line is printed before it runs. A finished stage is kept: run again after an interruption
and only what is missing is done. Delete a stage's folder to do it, and what follows it, again.
"""

import argparse
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

from rmtools.cli.errors import exit_on_user_error
from rmtools.errors import UserError
from rmtools.files import read_json, write_json

RECIPES = Path(__file__).resolve().parent


def stages(out: Path, seed: int) -> list[tuple[str, Path, list[str]]]:
    """Return name, finished file and command of every stage, in order."""
    rmtools = [sys.executable, "-m", "rmtools.cli.main"]
    policy, prm, rollouts, samples = (out / n for n in ("policy", "prm", "rollouts", "samples"))
    prompts = str(samples / "prompts.jsonl")
    sample = [*rmtools, "sample", "--policy", str(policy), "--model", str(prm), "-n", "16", "--prompts", prompts]

    def rollout(name: str, *flags: str) -> tuple[str, Path, list[str]]:
        command = [*rmtools, "rollout", "--policy", str(policy), "--task", "crossing", "--horizon", "8", *flags,
                   "--out", str(rollouts / name)]
        return f"rollouts for {name}", rollouts / name / "metadata.json", command

    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
              str(RECIPES.parent / "accelerate_config.yaml"), str(RECIPES / "train_prm.py"), "--config",
              str(RECIPES / "quickstart_prm.yaml"), "--train_rollouts", str(rollouts / "train"),
              "--eval_rollouts", str(rollouts / "heldout"), "--output_dir", str(prm), "--seed", str(seed)]
    return [
        ("policy", policy / "gate.json", [sys.executable, str(RECIPES / "train_policy.py"), "--out", str(policy)]),
        rollout("train", "--prompts", "1024", "--trajectories", "8", "--seed", "1"),
        rollout("heldout", "--prompts", "32", "--trajectories", "4", "--children", "8", "--seed", "2"),
        rollout("audit", "--prompts", "96", "--trajectories", "8", "--children", "16", "--completions", "4", "--seed", "3"),
        ("value model", prm / "rmtools.json", launch),
        ("audit", out / "audit/audit.json", [*rmtools, "audit", "--model", str(prm), "--rollouts", str(rollouts / "audit"),
                                             "--out", str(out / "audit")]),
        ("prompts", samples / "prompts.jsonl", [*rmtools, "prompts", "--task", "crossing", "--horizon", "8", "-n", "400",
                                                "--seed", "4", "--out", prompts]),
        ("best of 16", samples / "best_of_n.jsonl", [*sample, "--resampling", "none", "--out", str(samples / "best_of_n.jsonl")]),
        ("SMC with 16 particles", samples / "smc.jsonl", [*sample, "--out", str(samples / "smc.jsonl")]),
        ("verify", out / "verify/verify.json", [*rmtools, "verify", "lm", "--model", str(prm), "--n-prompts", "16",
                                                "--runs", "400", "--seed", "5", "--out", str(out / "verify")]),
        ("report", out / "summary.json", [*rmtools, "report", str(out)]),
    ]


def run(name: str, command: list[str]) -> dict[str, object]:
    """Run one stage; return its seconds and the peak memory of its processes."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    start = time.monotonic()
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    process = subprocess.Popen(command, env=environment)
    peak = Peak(process.pid)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if code:
        raise UserError(f"the stage '{name}' ended with exit code {code}", "read its output above, then run the same command again")
    return {"name": name, "command": shlex.join(command), "seconds": time.monotonic() - start, "peak_memory_gib": peak.stop()}


class Peak:
    """Samples the resident memory of a process and its children ten times a second."""

    def __init__(self, pid: int) -> None:
        import psutil

        self.process, self.bytes, self.done = psutil.Process(pid), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        import psutil

        while not self.done.wait(0.1):
            try:
                family = [self.process, *self.process.children(recursive=True)]
                self.bytes = max(self.bytes, sum(p.memory_info().rss for p in family))
            except psutil.Error:
                continue

    def stop(self) -> float:
        """Return the peak in GiB."""
        self.done.set()
        self.thread.join()
        return self.bytes / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seed", type=int, default=0, help="of the value model's training")
    args = parser.parse_args()
    log = args.out / "stages.json"
    done = {s["name"]: s for s in read_json(log, "the stage log")["stages"]} if log.exists() else {}
    changed = False
    for name, finished, command in stages(args.out, args.seed):
        if not changed and name in done and finished.exists():
            print(f"kept: {name} ({finished})")
            continue
        changed = True  # what comes after a new result is made anew
        done[name] = run(name, command)
        write_json(log, {"stages": list(done.values())})
    print(f"\nreport: {(args.out / 'report.html').resolve()}\nfigures: {(args.out / 'summary.json').resolve()}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()

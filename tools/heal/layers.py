"""Compares sets of STEM layers after equal training.

    layers.py --gguf M --data DATA --out DIR --steps 100

For each set a start in closed form (init.py) and so many steps of train.py, from the same text in the same order. Trainings run side
by side, so this wants a GPU; on a CPU, --at-once 1 and few tokens. DIR/layers.json has each set's figures
on held-out text before the first step and after the last.
"""

import argparse
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SETS = {
    "ten from the second on": range(1, 11),
    "ten early-middle layers": range(3, 13),
    "ten later layers": range(13, 23),
    "every third": range(2, 30, 3),
    "half of the layers": range(1, 30, 2),
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--gguf", required=True)
    p.add_argument("--data", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--only", nargs="+", default=list(SETS), choices=list(SETS), metavar="SET", help=f"of {', '.join(SETS)}")
    p.add_argument("--facts", action="store_true", help="train the first set twice more: without facts, and with none counterfactual")
    p.add_argument("--steps", type=int, default=100)
    p.add_argument("--lr", type=float, default=2.0, help="times all rates")
    p.add_argument("--at-once", type=int, default=3, help="trainings side by side")
    p.add_argument("--tokens", type=int, default=6144, help="of running text in a step")
    p.add_argument("--fact-rows", type=int, default=8)
    p.add_argument("--limit", type=int, default=150_000, help="tokens of text for the closed form")
    a = p.parse_args()
    running = []
    for name in a.only:
        folder = os.path.join(a.out, name.replace(" ", "-"))
        os.makedirs(folder, exist_ok=True)
        layers = list(SETS[name])
        env = os.environ | {"STEM_LAYERS": ",".join(map(str, layers))}
        init = os.path.join(folder, "init.pt")

        def python(script, folder, *more):
            command = [sys.executable, os.path.join(HERE, script), "--gguf", a.gguf, "--data", a.data, *more]
            return subprocess.Popen(command, env=env, stdout=open(os.path.join(folder, f"{script}.log"), "w"), stderr=subprocess.STDOUT)

        # One after the other, since each takes some 15 GB.
        if python("init.py", folder, "--out", init, "--limit", str(a.limit)).wait():
            print(f"{name}: the start failed, see {folder}", file=sys.stderr)
            continue

        def train(name, folder, fact_rows, *more):
            while sum(process.poll() is None for *_, process in running) >= a.at_once:
                time.sleep(0.2)
            os.makedirs(folder, exist_ok=True)
            size = ("--steps", str(a.steps), "--tokens", str(a.tokens), "--fact-rows", str(fact_rows), "--workers", "1")
            how = ("--init", init, "--out", folder, "--eager", "--lr", str(a.lr), "--settle", "0", "--probe-minutes", "1e9")
            done = python("train.py", folder, *how, *size, *more)
            running.append((name, layers, folder, done))

        train(name, folder, a.fact_rows)
        if a.facts and name == a.only[0]:
            train("no facts", folder + "-no-facts", 0)
            train("facts as they are", folder + "-straight", a.fact_rows, "--straight")
    found = []
    for name, layers, folder, process in running:
        if process.wait():
            print(f"{name}: training failed, see {folder}", file=sys.stderr)
            continue
        with open(os.path.join(folder, "log.jsonl")) as f:
            lines = [json.loads(line) for line in f]
        found.append({"name": name, "layers": layers, "closed": lines[0], "healed": lines[-1]})
        print(f"{name}: {lines[-1]}", flush=True)
    with open(os.path.join(a.out, "layers.json"), "w") as f:
        json.dump(found, f, indent=1)


if __name__ == "__main__":
    main()

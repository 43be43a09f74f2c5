"""Mutates valid inputs at random for as long as it is told, and looks for tracebacks, hangs and silent losses.

    python tests/properties/hostile/fuzz.py --seconds=600 --seed=1
    python tests/properties/hostile/fuzz.py --seed=1 --only=1234

A case is a pure function of seed and number. A child process runs the cases; one that hangs or kills it is reported,
and another child begins after it.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator

CASE_SECONDS = 100  # after which the parent kills a child; the child's own alarm rings before
FAULTS = ("traceback", "hang", "crash", "silent loss", "broken promise")
ROOT = pathlib.Path(__file__).resolve().parents[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--seed", type=int, default=None, help="of the cases; a random one is printed")
    parser.add_argument("--only", type=int, default=None, help="run this case alone, and say what it does")
    parser.add_argument("--command", default=None, help="only cases of this command")
    parser.add_argument("--child", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--fixtures", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options)
        return
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**9)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options.fixtures = folder
        sys.exit(parent(options))


# The parent, which imports nothing that can crash


def parent(options: argparse.Namespace) -> int:
    """Starts children until the time is over, and prints what they found; returns the exit status."""
    counts: collections.Counter = collections.Counter()
    faults: dict[str, list] = {}
    number, end = options.only or 0, None
    while end is None or time.monotonic() < end:
        process, lines = start(options, number)
        doing = None
        for line in lines:
            if line is None:
                process.kill()
                break
            if "ready" in line:
                end = end or time.monotonic() + options.seconds
            elif "begin" in line:
                doing = line
            else:
                note(options, counts, faults, doing | line)
                doing, number = None, line["number"] + 1
            if (options.only is not None and "kind" in line) or (end and time.monotonic() > end):
                process.kill()
                break
        status = process.wait()
        lines.close()
        finished = (end is not None and time.monotonic() > end) or options.only is not None
        if doing is None and not finished and not counts:
            print(f"The first child ended with status {status}.")
            return 1
        if doing is not None and not (finished and status == -9 and line is not None):
            kind = "hang" if line is None else "crash"
            note(options, counts, faults, doing | {"kind": kind, "text": f"the process ended with status {status}"})
            number = doing["number"] + 1
        if options.only is not None:
            break
    print(f"\nseed {options.seed}: {counts.total():,} cases: " + ", ".join(
        f"{counts[kind]:,} {kind}" for kind in ("fine", "error", *FAULTS)))
    for signature, cases in sorted(faults.items(), key=lambda item: -len(item[1])):
        print(f"  {len(cases):5} x {signature}\n          first --only={cases[0]}")
    return int(any(counts[kind] for kind in FAULTS))


def note(options: argparse.Namespace, counts: collections.Counter, faults: dict, case: dict) -> None:
    """Counts a case, and prints a fault of a new kind."""
    counts[case["kind"]] += 1
    signature = case.get("signature") or (case["text"].strip() or "?").splitlines()[-1][:150]
    known = f"{case['kind']}: {case['command']}: {signature}"
    if case["kind"] in FAULTS:
        if known not in faults:
            print(f"--- case {case['number']} ({case['kind']}): {case['command']}, {case['what']}\n"
                  f"{case['text'].strip()}", flush=True)
        faults.setdefault(known, []).append(case["number"])
    elif options.only is not None:
        print(f"case {case['number']} ({case['kind']}): {case['command']}, {case['what']}\n{case['text'].strip()}")


def start(options: argparse.Namespace, number: int) -> tuple[subprocess.Popen, Iterator[dict | None]]:
    """A child that begins with case `number`, and what it says; None if it says nothing for too long."""
    arguments = [f"--child={number}", f"--fixtures={options.fixtures}", f"--seed={options.seed}"]
    arguments += [f"--command={options.command}"] if options.command else []
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3",
                   "JAX_ENABLE_COMPILATION_CACHE": "0",
                   "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "properties"), str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])}
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, __file__, *arguments], env=environment, pass_fds=[writing],
                               stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.DEVNULL)
    os.close(writing)

    def lines() -> Iterator[dict | None]:
        held = b""
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while True:
                if not select.select([pipe], [], [], CASE_SECONDS if held or begun else 10 * CASE_SECONDS)[0]:
                    yield None
                    return
                if not (content := pipe.read(1 << 16)):
                    return
                *whole, held = (held + content).split(b"\n")
                for line in whole:
                    begun.append(line)
                    yield json.loads(line)

    begun: list[bytes] = []
    return process, lines()


# The child


def child(options: argparse.Namespace) -> None:
    """Runs cases from number `child` on, and says of each how it went, as JSON lines on the real standard output."""
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    from hostile import fixtures

    folder = pathlib.Path(options.fixtures) / "fixtures"
    if not folder.exists():
        folder.mkdir()
        fixtures.make(folder)
        fixtures.make_more(folder)
    import tensorflow_datasets  # noqa: F401 (in the first case it would take longer than a case may)

    from hostile import scenarios

    said.write(json.dumps({"ready": True}) + "\n")
    for number in itertools.count(options.child):
        rng = random.Random(f"{options.seed} {number}")
        scenario = scenarios.choose(rng)
        if options.command and scenario.command != options.command:
            continue
        place = pathlib.Path(tempfile.mkdtemp(dir=options.fixtures))
        try:
            case = scenarios.Case(scenario, rng, place / "box", folder)
            said.write(json.dumps({"begin": True, "number": number, "command": scenario.name, "what": case.what})
                       + "\n")
            said.write(json.dumps({"number": number, **case.run()}) + "\n")
        except Exception:
            said.write(json.dumps({"begin": True, "number": number, "command": scenario.name, "what": "?"}) + "\n")
            said.write(json.dumps({"number": number, "kind": "crash", "text": "in the fuzzer itself:\n"
                                   + traceback.format_exc(limit=-3)}) + "\n")
        finally:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()

"""Attack mmtune as a dying machine would, and say what it survived: `make faults`, or `run_faults.py --seed N`.

As root, the script makes itself a mount namespace of its own, for disks that are full or may not be written to; else
those attacks are left out, but for the limit on the size of files.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fault_attacks import Outcome

_APART = "MMTUNE_FAULTS_APART"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of all moments that are chosen")
    parser.add_argument("--quick", action="store_true", help="a few attacks of each kind on the fastest command")
    parser.add_argument("--only", default="", help="attacks whose line of the plan holds this word")
    parser.add_argument("--table", type=Path, help="where to write the table in Markdown")
    options = parser.parse_args()
    apart = _in_own_mounts()
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

    from fault_attacks import table

    begun = time.monotonic()
    outcomes: list[Outcome] = []
    with _folder() as work:
        for name, attack in _plan(work, options.seed, quick=options.quick, apart=apart):
            if options.only not in name:
                continue
            for outcome in attack():
                outcomes.append(outcome)
                lost = f"{len(outcome.problems)} LOST" if outcome.problems else "all survived"
                passed = time.monotonic() - begun
                print(f"{passed:5.0f} s  {outcome.attack}: {outcome.command}: {outcome.tried} tried, {lost}")
                for problem in outcome.problems:
                    print(f"    {problem}")
            sys.stdout.flush()
    text = table(outcomes)
    print(f"\n{text}\n\nSeed {options.seed}, {(time.monotonic() - begun) / 60:.0f} minutes.")
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text + "\n")
    return 1 if any(outcome.problems for outcome in outcomes) else 0


def _plan(work: Path, seed: int, *, quick: bool, apart: bool) -> Iterator[tuple[str, Callable[[], list[Outcome]]]]:
    """The attacks, in their order, each with a name to choose it by."""
    from fault_attacks import Siege
    from fault_commands import EVALUATE, EXPORT, FIT, GGUF, PHOTOS, REPRODUCE, TOKENS, training
    from fault_processes import start, start_command
    from fault_world import build_world

    world = work / "world"
    world.mkdir()
    made = start(lambda: build_world(world), work / "world.log").end()
    assert made.status == 0, made.said
    for arguments in training(world):
        trained = start_command(arguments, work / "run.log", cache=work / "cache").end()
        assert trained.status == 0, trained.said
    siege = Siege(world, work / "places", seed)
    kill, term = signal.SIGKILL, signal.SIGTERM
    chosen: list[tuple[str, Callable[..., Outcome], Sequence[tuple[object, ...]]]] = []
    if quick:
        chosen += [
            ("kill", siege.signals, [(EXPORT, kill, 4)]),
            ("full", siege.limited_files, [(EXPORT, [0.5])]),
            ("two", siege.two_at_once, [(EXPORT, 2)]),
        ]
    else:
        kills = {FIT: 12, TOKENS: 4, PHOTOS: 6, GGUF: 6, EVALUATE: 10, EXPORT: 6}
        terms = {FIT: 6, PHOTOS: 2, EVALUATE: 4, EXPORT: 2}
        outs = [(command, "out") for command in (FIT, EVALUATE, EXPORT)]
        caches = [(command, "cache") for command in (TOKENS, PHOTOS, GGUF)]
        chosen += [
            ("kill", siege.signals, [(command, kill, times) for command, times in kills.items()]),
            ("term", siege.signals, [(command, term, times) for command, times in terms.items()]),
            ("full", siege.full_disk, [(*one, [0.1, 0.4, 0.7]) for one in (outs + caches) * apart]),
            ("full", siege.limited_files, [(command, [0.3, 0.8]) for command in (FIT, EVALUATE, EXPORT, GGUF)]),
            ("read-only", siege.read_only, (outs + caches) * apart),
            ("read-only", siege.in_the_way, outs + caches),
            ("two", siege.two_at_once, [(command, 3) for command in (FIT, EVALUATE, EXPORT)]),
            ("two", siege.shared_cache, [(command, 2) for command in (TOKENS, PHOTOS, GGUF)]),
            ("clock", siege.clock, [(command, 2) for command in (FIT, PHOTOS, EVALUATE, EXPORT)]),
        ]
    for name, attack, given in chosen:
        for one in given:
            yield name, functools.partial(lambda attack, one: [attack(*one)], attack, one)
    if not quick:
        strikes = [(kill, True)] * 5 + [(kill, False), (term, False), (term, False)]
        yield "reproduce", lambda: siege.one_run(REPRODUCE, strikes, disks=apart)


def _in_own_mounts() -> bool:
    """Whether disks can be mounted that no one else sees; starts the script anew where they can and do not yet."""
    if os.environ.get(_APART):
        return True
    apart = ["unshare", "--mount", "--propagation", "private"]
    if os.geteuid() or shutil.which("unshare") is None or subprocess.run([*apart, "true"], check=False).returncode:
        return False
    os.execvpe("unshare", [*apart, sys.executable, *sys.argv], {**os.environ, _APART: "1"})
    return False


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder that is deleted in the end, and kept where the script fails itself."""
    folder = Path(tempfile.mkdtemp(prefix="mmtune-faults-")).resolve()
    print(f"Working in {folder}", file=sys.stderr)
    yield folder
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())

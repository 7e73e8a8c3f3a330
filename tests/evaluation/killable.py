"""An evaluation in a process of its own, slow enough to be killed: `killable.py DATA SUITE OUT LOG [key=value …]`.

Every prompt that is asked is first written to LOG, one a line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from scripted_models import Scripted

import mmtune.evaluation.run.chunks as chunks
from mmtune.common.errors import UserError
from mmtune.evaluation.run.engine import evaluate

SECONDS_PER_QUESTION = 0.01
chunks.QUESTIONS = 4


def main() -> int:
    data, suite, out, log, *given = sys.argv[1:]

    def slowly(prompt: str) -> str:
        with Path(log).open("a") as stream:
            stream.write(json.dumps(prompt) + "\n")
        time.sleep(SECONDS_PER_QUESTION)
        return ("yes", "no", "A", "\ud800 \x1b[31m [red] \u2028")[sum(prompt.encode()) % 4]

    options = {key: json.loads(value) for key, value in (pair.split("=") for pair in given)}
    try:
        evaluate(Scripted(slowly), suite, data_root=data, out=out, progress=False, **options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

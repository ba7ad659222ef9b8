"""The worker of `benchmarks.throughput` for language models: same protocol, different contestants.

python -m benchmarks.language.worker NAME SIZE_AS_JSON
"""

import sys

from benchmarks.language.sizes import Size
from benchmarks.throughput.worker import parse, private_stdout, serve

if __name__ == "__main__":
    sys.exit(serve(parse(None, Size.from_json, "benchmarks.language"), private_stdout()))

"""Peak memory and time of predicting each slide, in a process of its own.

    python tests/bench/predict.py RUN COHORT.csv --caches CACHES

Prints, per slide, its patches, the seconds, and the most memory the process held.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Each slide in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--caches", type=Path, required=True)
    parser.add_argument("--slide", help="this one only, here")
    options = parser.parse_args()
    from wsi_dbps.cohort.manifest import read_manifest

    cohort = read_manifest(options.cohort)
    if options.slide is None:
        for record in cohort.records:
            subprocess.run([sys.executable, *sys.argv, "--slide", record.slide_id], check=True)
        return
    from wsi_dbps.inference.predict import predict
    from wsi_dbps.training.checkpoint import load_checkpoint

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        done = predict(
            [load_checkpoint(options.run / "best.pt")], cohort.slides(options.slide), options.caches, Path(out)
        )
    (row,) = done.predictions.slides
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(
        f"{row.slide_id}: {row.num_patches} patches, {time.perf_counter() - start:.1f} s, {peak_mb:.0f} MB", flush=True
    )


if __name__ == "__main__":
    main()

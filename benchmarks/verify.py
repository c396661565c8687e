"""Computes one trial of each committed suite again, in an empty store, and compares it with its record.

    python benchmarks/verify.py results            # the first method of each suite's last track, on its first request, all seeds
    python benchmarks/verify.py results --track 0  # of another track

On the machine that made the record the values are equal to the bit. Elsewhere other processors round differently, and training amplifies
that: a value may differ by the tolerance, 0.1 on the scale of probabilities and accuracies (of larger values a tenth), which is far less
than what separates original and oracle. Exits with 1 if one differs by more. A suite whose data is not here is named and left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from unlearnbench.api import UserError
from unlearnbench.config import Suite, load_suite
from unlearnbench.records import Record, read_records
from unlearnbench.runner import run_suite
from unlearnbench.trial import Place

TOLERANCE = 0.1


def main(argv: list[str] | None = None) -> int:
    """Verify every suite below a folder; return the exit code."""
    parser = argparse.ArgumentParser(description="Compute one trial of each committed suite again and compare it with its record.")
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--track", type=int, default=-1)
    chosen = parser.parse_args(argv)
    folders = sorted(path.parent for path in chosen.results.rglob("suite.json"))
    if not folders:
        parser.error(f"{chosen.results} holds no results (suite.json)")
    return max(verify(folder, chosen.track) for folder in folders)


def verify(folder: Path, track: int = -1) -> int:
    """Compute one trial of a folder of records again; print what differs most; return 1 if it is too much."""
    committed = {_identity(record): record for record in read_records(folder)}
    with tempfile.TemporaryDirectory() as place:
        suite = _one_trial(folder / "suite.json", track, Path(place))
        try:  # nothing but data that is not here may leave a suite out
            Place(scenario=suite.tracks[0].scenario, request=suite.tracks[0].requests[0]).open().split("forget")
        except UserError as error:
            print(f"{folder}: left out: {error}")
            return 0
        run_suite(suite, store=f"{place}/store", out=Path(place) / "out", workers=1)
        again = read_records(Path(place) / "out")
    worst, where, count = 0.0, "nothing", 0
    for record in again:
        kept = committed[_identity(record)]
        for new, old in zip(record.cells, kept.cells, strict=True):
            if new.column != old.column or new.status != old.status:
                print(f"{folder}: {record.filename} has {new.column} {new.status}, the record {old.column} {old.status}")
                return 1
            if new.value is not None and old.value is not None:
                count += 1
                difference = abs(new.value - old.value) / max(1.0, abs(old.value))
                if difference > worst:
                    worst, where = difference, f"{record.trial.label}, seed {record.trial.seed}, {new.column}"
    print(f"{folder}: {len(again)} records, {count} values; largest difference {worst:.2g} ({where})")
    return int(worst > TOLERANCE or count == 0)


def _identity(record: Record) -> tuple[str, str, int, str, int]:
    trial = record.trial
    return (trial.scenario, trial.request, trial.step, trial.label, trial.seed)


def _one_trial(manifest: Path, track: int, place: Path) -> Suite:
    """The committed suite with one track, one request and one method left."""
    document = json.loads(manifest.read_text(encoding="utf-8"))["suite"]
    # JSON is YAML; all seeds and oracles stay, for what is trained together rounds together.
    (place / "suite.yaml").write_text(json.dumps(document), encoding="utf-8")
    suite = load_suite(place / "suite.yaml")
    kept = suite.tracks[track]
    kept = kept.model_copy(update={"requests": kept.requests[:1], "methods": kept.methods[:1]})
    return suite.model_copy(update={"tracks": (kept,)})


if __name__ == "__main__":
    sys.exit(main())

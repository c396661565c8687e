"""`unlearnbench evaluate`: a checkpoint scored on a benchmark, and what is printed of it."""

from __future__ import annotations

from pathlib import Path

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def evaluate_with_profile(
    *,
    scenario: str,
    model: str,
    forget: str,
    corpus: str,
    oracle: str | None,
    oracle_log: Path | None,
    reference: str | None,
    data_dir: str | None,
    limit: int | None,
    attacks: tuple[str, ...] | None,
    workers: int,
    device: str,
    dtype: str,
    out: Path,
) -> str:
    """Evaluate as open-unlearning does, and write its files.

    Args:
        scenario: tofu or muse.
        model: folder or hub name.
        forget: TOFU's forget set.
        corpus: MUSE's corpus.
        oracle: folder of the retain model.
        oracle_log: its log instead.
        reference: folder of the model of the reference attack.
        data_dir: the data set's folder; None for UNLEARNBENCH_DATA or the hub.
        limit: first rows of every split.
        attacks: names of membership attacks; None for all that can be.
        workers: processes.
        device: cpu or cuda.
        dtype: fp32 or bf16.
        out: folder of the results.

    Returns:
        The aggregates, one a line, and where the files are.

    Raises:
        UserError: bad input; nothing is written.
    """
    from unlearnbench.open_unlearning_eval import Request, evaluate, summary, write
    from unlearnbench.open_unlearning_muse import MuseSuite
    from unlearnbench.open_unlearning_pass import Model
    from unlearnbench.open_unlearning_tofu import TofuSuite

    suite = TofuSuite(forget, data_dir, limit) if scenario == "tofu" else MuseSuite(corpus, data_dir, limit)
    request = Request(
        suite=suite,
        model=Model(model, device, DTYPES[dtype]),
        oracle=oracle,
        oracle_log=oracle_log,
        reference=reference,
        attacks=attacks,
        workers=workers,
    )
    groups = evaluate(request)
    written = write(suite, groups, out)
    lines = [f"{name:<24} {value:.6g}" for name, value in summary(suite, groups).items()]
    return "\n".join([*lines, f"written: {', '.join(map(str, written))}"])

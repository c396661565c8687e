"""Unlearn a language model of one's own: a model folder and two files of rows in, a model folder out.

Knows how the pieces meet: the scenario of a user's texts, one method, and a folder that appears whole or not at all.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from unlearnbench import document, registry
from unlearnbench.api import Method, MethodView, Reference, UserError
from unlearnbench.artefacts import own_randomness
from unlearnbench.checkpoints import is_wrapped, save_checkpoint
from unlearnbench.files import write_json
from unlearnbench.progress import progress
from unlearnbench.training import Hardware, hardware


def fields_of(assignments: Iterable[str]) -> dict[str, Any]:
    """Hyper-parameters out of `field=value`, the value in YAML.

    Raises:
        UserError: not of that form, or a field twice.

    >>> fields_of(["lr=1e-5", "layers=[1, 2]"])
    {'lr': 1e-05, 'layers': [1, 2]}
    """
    fields: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--set {assignment}: write field=value, such as lr=1e-5")
        if name in fields:
            raise UserError(f"--set {assignment}: {name} was set before")
        fields[name] = document.parse(text or "''", f"--set {assignment}").data
    return fields


def unlearn_folder(
    *,
    method: str,
    model: str,
    forget: str,
    retain: str,
    fields: Mapping[str, Any],
    template: Mapping[str, Any],
    out: Path,
    seed: int = 0,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Literal["fp32", "bf16"] = "fp32",
) -> str:
    """Unlearn and save.

    Args:
        method: a method's name, or path/to/file.py:Class.
        model: the model that knows the forget rows: a folder, or a name on the hub.
        forget: file of the rows to forget, {question, answer} or {text}.
        retain: file of the rows to retain.
        fields: the method's hyper-parameters.
        template: how questions are put to the model, as in a suite (`prompts`).
        out: the folder to make.
        seed: seeds the method.
        device: where it runs.
        dtype: precision of training.

    Returns:
        How to open the folder.

    Raises:
        UserError: bad input, or the method cannot serve such a model; nothing is written.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} has files in it; give a folder that is empty or not there")
    plugin = registry.make("methods", method, fields)
    _check(plugin, method)
    scenario = registry.make(
        "scenarios",
        "text",
        {
            "request": "forget",
            "forget": forget,
            "retain": retain,
            "models": {"source": "ready", "original": model, "dtype": "float32"},
            "prompts": dict(template),
        },
    )
    reason = plugin.supports(scenario)
    if reason is not None:
        raise UserError(f"{method} cannot unlearn a language model of your own: {reason}")
    found = hardware.set(Hardware(device=device, dtype=dtype))
    try:
        known = scenario.train([scenario.plan("original")], [seed])[0].eval()
        view = MethodView(**scenario.method_view(), subset_models=_no_subsets, progress=_tell)
        tokenizer = view.tokenizer
        with own_randomness(seed):
            forgot = plugin.unlearn(known, view, seed=seed)
    finally:
        hardware.reset(found)
    out.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        save_checkpoint(forgot.to("cpu").eval(), tokenizer, half, method=method)
        described = {"method": method, "fields": plugin.hyperparameters(), "model": model, "seed": seed}
        write_json(half / "unlearnbench.json", described)
        wrapped = is_wrapped(half)
        if out.exists():
            out.rmdir()
        half.chmod(0o755)
        half.rename(out)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    opener = "unlearnbench.checkpoints.load_checkpoint" if wrapped else "AutoModelForCausalLM.from_pretrained"
    return f"{out}: opened by {opener}({str(out)!r})"


def _check(plugin: Method, name: str) -> None:
    if isinstance(plugin, Reference):
        raise UserError(f"{name} is a reference row: it needs oracles, which only a suite has")
    if plugin.native:
        raise UserError(f"{name} owns training: it cannot start from a model that was trained otherwise")


def _no_subsets(left_out: Any) -> Any:
    raise UserError("this method wants models trained without parts of the data, which only a suite can train")


def _tell(label: str, done: int, total: int) -> None:
    listener = progress.get()
    if listener is not None:
        listener(label, done, total)

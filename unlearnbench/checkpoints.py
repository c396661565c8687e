"""Language models as folders that users have: read with `from_pretrained`, and written so that it opens them.

A model whose weights were edited is an ordinary folder (config, safetensors, tokenizer). One with inserted modules is the same folder
with the weights as deployed and, in `deployed.json`, which modules stand where and which registered method they belong to; it is opened
with `load_checkpoint`. No code is ever named in a folder and run, and weights are safetensors alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from unlearnbench import registry
from unlearnbench.api import UserError
from unlearnbench.deployed import ADAPTER, load_model, save_model
from unlearnbench.layers import Inserted, inserted

DEPLOYED = "deployed.json"


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a folder or of a model on the hub.

    One without a pad token is taken and pads with its end token: masks come from lengths, so what fills a batch changes no number.

    Raises:
        UserError: there is none, or it has no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} has no tokenizer that transformers can read: {_first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {folder} has no end token (eos_token), which ends every answer, and fills batches where no pad token is"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_checkpoint(
    folder: str, *, dtype: str = "float32", device_map: str | None = None, inserts: tuple[type[Inserted], ...] = ()
) -> nn.Module:
    """A causal language model in eval mode, inserted modules included.

    Args:
        folder: a folder, or the name of a model on the hub.
        dtype: the weights' precision, as torch names it.
        device_map: as transformers takes it.
        inserts: module classes of a method that is not registered.

    Raises:
        UserError: there is no model, its weights are no safetensors, or its inserted modules belong to no known method.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    place = Path(folder)
    try:
        if not (place / DEPLOYED).exists():
            placed = {} if device_map is None else {"device_map": device_map}
            with _bars():
                model: nn.Module = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, **placed
                )
            return model.eval()
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is no causal language model that transformers can read: {_first_line(error)}") from error

    def build() -> nn.Module:
        bare: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)  # type: ignore[no-untyped-call]
        return bare

    try:
        return load_model(place, build, (*inserts, *_known(place)))
    except ValueError as error:
        raise UserError(_first_line(error)) from error


@contextmanager
def _bars() -> Iterator[None]:
    """Transformers' own progress bars on a terminal alone."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _known(folder: Path) -> tuple[type[Inserted], ...]:
    """The module classes of the registered method that a folder names."""
    method = json.loads((folder / DEPLOYED).read_text(encoding="utf-8")).get("method")
    names = {entry.name for entry in registry.entries("methods")}
    return registry.load("methods", method).inserts if method in names else ()


def save_checkpoint(model: nn.Module, tokenizer: Any, folder: Path, *, method: str) -> None:
    """Write a model and its tokenizer into an existing folder.

    Args:
        model: a transformers model, perhaps with inserted modules or an adapter.
        tokenizer: its tokenizer.
        folder: where to.
        method: the name of the method that made it.
    """
    tokenizer.save_pretrained(folder)
    if inserted(model) or hasattr(model, "peft_config"):
        base: Any = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
        base.config.save_pretrained(folder)
        save_model(model, folder)
        document = json.loads((folder / DEPLOYED).read_text(encoding="utf-8"))
        (folder / DEPLOYED).write_text(json.dumps({**document, "method": method}, indent=1, sort_keys=True), encoding="utf-8")
        if getattr(base, "generation_config", None) is not None:
            base.generation_config.save_pretrained(folder)
    else:
        with _bars():
            model.save_pretrained(folder)  # type: ignore[operator]


def is_wrapped(folder: Path) -> bool:
    """Whether a saved folder needs `load_checkpoint` rather than `from_pretrained`."""
    return (folder / DEPLOYED).exists() or (folder / ADAPTER).exists()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Tensors in files: tied, strided and overlapping ones, and what their hash sees."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unlearnbench.tensors import load_tensors, save_tensors, tensor_hash

BASE = torch.arange(12.0).reshape(3, 4)


def same_memory(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def roundtrip(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    save_tensors(folder, tensors)
    loaded = load_tensors(folder)
    assert list(loaded) == sorted(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert tensor_hash(loaded) == tensor_hash(tensors)
    return loaded


@pytest.mark.parametrize(
    "tensor",
    [
        BASE,
        BASE.T,
        BASE[:, 1],
        torch.tensor(3),
        torch.zeros(0, 3),
        BASE[:1].expand(5, 4),
        BASE.to(torch.bfloat16),
        BASE > 3,
        torch.tensor([float("nan"), -0.0]),
        torch.nn.Parameter(BASE),
    ],
    ids=["plain", "transposed", "column", "scalar", "empty", "expanded", "bfloat16", "bool", "nan", "parameter"],
)
def test_any_tensor_comes_back(tensor: torch.Tensor, tmp_path: Path) -> None:
    roundtrip(tmp_path, {"tensor": tensor, "other": torch.ones(2)})


def test_tied_weights_are_written_once_and_tied_again(tmp_path: Path) -> None:
    from safetensors import safe_open

    weight = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    loaded = roundtrip(tmp_path, {"embed": weight, "head": weight, "alone": weight.clone()})
    assert same_memory(loaded["embed"], loaded["head"])
    assert not same_memory(loaded["embed"], loaded["alone"])
    loaded["head"][1, 2] = 7
    assert loaded["embed"][1, 2] == 7
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["alone", "embed"]
    assert (tmp_path / "model.safetensors").stat().st_size < 3 * weight.nbytes


def test_tied_weights_of_a_module_survive_a_fresh_process(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(7, 3)
            self.head = torch.nn.Linear(3, 7, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    save_tensors(tmp_path, model.state_dict(), "tied.safetensors")
    program = (
        "import sys; from pathlib import Path; from unlearnbench.tensors import load_tensors, tensor_hash\n"
        "t = load_tensors(Path(sys.argv[1]), 'tied.safetensors'); a, b = t['embed.weight'], t['head.weight']\n"
        "print(tensor_hash(t), a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [tensor_hash(model.state_dict()), "True"]


def test_views_within_a_tensor_stay_views_of_it(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    loaded = roundtrip(tmp_path, {"a": whole[1:3], "whole": whole, "t": whole.T, "column": whole[:, 5], "last": whole[3, 5]})
    assert all(same_memory(tensor, loaded["whole"]) for tensor in loaded.values())
    loaded["whole"][1, 5] = -1
    assert loaded["a"][0, 5] == loaded["t"][5, 1] == loaded["column"][1] == -1


def test_equal_views_that_are_not_contiguous_are_tied(tmp_path: Path) -> None:
    loaded = roundtrip(tmp_path, {"a": BASE.T, "b": BASE.T})
    assert same_memory(loaded["a"], loaded["b"])
    loaded = roundtrip(tmp_path, {"rows": BASE[:1].expand(5, 4), "row": BASE[:1]})
    assert loaded["rows"].stride() == (0, 1), "the contiguous one is written, though it is smaller"


def test_parts_of_one_storage_that_do_not_overlap_are_separate(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    parts = {"left": whole[:, :2], "right": whole[:, 2:], "bits": torch.arange(4)[:2], "empty": whole[:0]}
    loaded = roundtrip(tmp_path, parts | {"top": BASE[:1], "bottom": BASE[1:]})
    assert not same_memory(loaded["left"], loaded["right"])
    assert not same_memory(loaded["top"], loaded["bottom"])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": BASE[:2], "b": BASE[1:]}, "'a' and 'b' overlap in part"),
        ({"a": BASE[0], "b": BASE.flatten()[1:5]}, "'a' and 'b' overlap in part"),
        ({"a": BASE[:, :3], "b": BASE[:, 2:]}, "'a' and 'b' overlap in part"),
        ({"a": BASE, "b": BASE.view(torch.int32)}, "'a' and 'b' overlap in part"),
        ({"a": BASE.T, "b": BASE[0]}, "'b' and 'a' overlap in part"),
        ({"a": torch.zeros(2, device="meta")}, "'a' is torch.strided on meta"),
        ({"a": BASE.to_sparse()}, "'a' is torch.sparse_coo on cpu"),
    ],
)
def test_what_cannot_be_restored_is_refused(tensors: dict[str, torch.Tensor], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        save_tensors(tmp_path, tensors)
    assert list(tmp_path.iterdir()) == []


def test_the_file_does_not_depend_on_order_or_strides(tmp_path: Path) -> None:
    tensors = {"b": BASE.T, "a": BASE, "c": BASE.clone(), "half": BASE.half(), "d": BASE.half()}
    first = save_tensors(tmp_path, tensors, "first").read_bytes()
    assert save_tensors(tmp_path, dict(reversed(tensors.items())), "second").read_bytes() == first
    strided = tensors | {"c": BASE.T.contiguous().T}
    assert save_tensors(tmp_path, strided, "third").read_bytes() == first


def test_hash_sees_values_names_dtypes_and_shapes_and_nothing_else() -> None:
    reference = {"a": BASE, "b": torch.zeros(4)}
    expected = tensor_hash(reference)
    assert len(expected) == 64
    same = [
        {"b": torch.zeros(4), "a": BASE.T.contiguous().T},
        {"b": torch.zeros(1).expand(4), "a": torch.nn.Parameter(BASE.clone())},
    ]
    assert {tensor_hash(tensors) for tensors in same} == {expected}
    flipped = BASE.clone()
    flipped[2, 3] += 1e-6
    different = [
        {"a": BASE},
        {"a": BASE, "c": torch.zeros(4)},
        {"b": BASE, "a": torch.zeros(4)},
        {"a": BASE.reshape(4, 3), "b": torch.zeros(4)},
        {"a": BASE, "b": torch.zeros(4, dtype=torch.int32)},  # the same bytes
        {"a": BASE, "b": torch.zeros(2, 2)},
        {"a": flipped, "b": torch.zeros(4)},
        {"a": BASE, "b": -torch.zeros(4)},
        {"a": BASE.bfloat16(), "b": torch.zeros(4)},
        {},
    ]
    assert len({tensor_hash(tensors) for tensors in different} | {expected}) == len(different) + 1

"""Bounds of a bundle's files, and its sentences in full: at the bound taken, beyond it refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from tiny_bundle import rewrite_manifest

from retnet_edge.errors import InputError
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.bundle.manifest import digest


def sentence(path: Path) -> str:
    """What is said when the bundle is opened."""
    with pytest.raises(InputError) as caught:
        Bundle.open(path)
    return str(caught.value)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change manifest.json as JSON; its digest is mended."""
    raw = json.loads((path / "manifest.json").read_bytes())
    change(raw)
    raw["manifest_sha256"] = digest(raw)
    (path / "manifest.json").write_text(json.dumps(raw))


def test_a_manifest_of_4_mib_and_no_more(broken: Path) -> None:
    manifest, most = broken / "manifest.json", 4 * 1024 * 1024
    raw = manifest.read_bytes()
    manifest.write_bytes(raw + b" " * (most - len(raw)))
    Bundle.open(broken)
    manifest.write_bytes(raw + b" " * (most + 1 - len(raw)))
    assert sentence(broken) == f"{manifest} has {most + 1} bytes; a manifest has at most {most}"


def test_files_of_32_bytes_a_parameter_and_512_mib_and_no_more(broken: Path) -> None:
    """A sum within the bound is believed as far as the look at the files themselves."""
    parameters = 1000
    most = 32 * parameters + 512 * 1024 * 1024

    def listed(total: int) -> Callable[[dict[str, Any]], None]:
        def change(raw: dict[str, Any]) -> None:
            raw["model"]["parameters"] = parameters
            rest = sum(e["size"] for n, e in raw["files"].items() if n != "weights.bin")
            raw["files"]["weights.bin"]["size"] = total - rest

        return change

    edit(broken, listed(most))
    assert sentence(broken).startswith(f"{broken / 'weights.bin'} has 24896 bytes; the manifest")
    edit(broken, listed(most + 1))
    assert sentence(broken) == (
        f"{broken / 'manifest.json'}: its files take {most + 1} bytes; a bundle of 1000 parameters "
        f"takes at most {most}"
    )


def last_tensor(bundle: Path, change: Callable[[onnx.TensorProto], None]) -> None:
    """Change where the step graph says that the last of its weights lies."""
    model = onnx.load_model(bundle / "step.onnx", load_external_data=False)
    change([tensor for tensor in model.graph.initializer if tensor.external_data][-1])
    (bundle / "step.onnx").write_bytes(model.SerializeToString())
    rewrite_manifest(bundle, rehash=True)


def test_weights_up_to_the_last_byte_of_their_file(broken: Path) -> None:
    """[12, 300] numbers of 4 bytes lie at the end of weights.bin."""
    raw = (broken / "weights.bin").read_bytes()
    (broken / "weights.bin").write_bytes(raw[:-1])
    rewrite_manifest(broken, rehash=True)
    end = len(raw)
    assert sentence(broken) == (
        f"{broken / 'step.onnx'}: a tensor lies at bytes {end - 12 * 300 * 4} to {end} of "
        f"'weights.bin', which has {end - 1}"
    )


def test_weights_without_a_length_begin_within_their_file(broken: Path) -> None:
    """They go on to its end, and may be none."""
    size = (broken / "weights.bin").stat().st_size

    def at(offset: int) -> Callable[[onnx.TensorProto], None]:
        def change(tensor: onnx.TensorProto) -> None:
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value="weights.bin")
            tensor.external_data.add(key="offset", value=str(offset))

        return change

    last_tensor(broken, at(size))
    Bundle.open(broken)
    last_tensor(broken, at(size + 1))
    assert sentence(broken) == (
        f"{broken / 'step.onnx'}: a tensor lies at bytes {size + 1} to {size + 1} of "
        f"'weights.bin', which has {size}"
    )


@pytest.mark.parametrize(
    ("listed", "shown"),
    [([], "none"), (["tokenizer.json"], "tokenizer.json"),
     (["tokenizer.json", "prefill.onnx"], "tokenizer.json, prefill.onnx")],
)  # fmt: skip
def test_the_sentence_names_the_external_data_that_is_listed(
    listed: list[str], shown: str, broken: Path
) -> None:
    edit(broken, lambda raw: raw["graphs"][0].update(external_data=listed))
    assert sentence(broken) == (
        f"{broken / 'step.onnx'}: its weights lie in 'weights.bin', which the manifest does not "
        f"list as its external data (listed: {shown})"
    )


def test_a_name_is_refused_before_sizes_and_before_it_is_looked_for(broken: Path) -> None:
    """Whether it is listed in files or only used."""
    rules = "a bundle's files are plain relative paths of letters, digits, '.', '_' and '-' inside"
    wanted = f"{broken / 'manifest.json'}: the file name '../x' is not allowed: {rules} the bundle"
    kept = (broken / "manifest.json").read_bytes()
    for change in (
        lambda raw: raw["files"].update({"../x": {"size": 1 << 40, "sha256": "0" * 64}}),
        lambda raw: raw["graphs"][0].update(file="../x"),
        lambda raw: raw["graphs"][0].update(external_data=["../x"]),
        lambda raw: raw["tokenizer"].update(file="../x"),
    ):
        (broken / "manifest.json").write_bytes(kept)
        edit(broken, change)
        assert sentence(broken) == wanted


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("tokenizer.json", "the tokenizer"),
        ("step.onnx", "the step graph"),
        ("prefill.onnx", "the prefill graph"),
        ("weights.bin", "external data of step.onnx"),
    ],
)
def test_a_file_that_is_not_listed_is_named_with_what_it_is_for(
    name: str, role: str, broken: Path
) -> None:
    edit(broken, lambda raw: raw["files"].pop(name))
    assert sentence(broken) == (
        f"{broken / 'manifest.json'}: {name!r} ({role}) is not listed in files"
    )


def test_a_manifest_that_is_a_link_is_told_how_to_download_files(
    broken: Path, tmp_path: Path
) -> None:
    (broken / "manifest.json").rename(tmp_path / "elsewhere")
    (broken / "manifest.json").symlink_to(tmp_path / "elsewhere")
    assert "hf download OWNER/NAME --local-dir FOLDER" in sentence(broken)


@pytest.mark.parametrize(
    ("name", "value"),
    [("end_of_text", 300), ("other_ends", [1, 300]), ("begin_of_text", 300), ("padding", 300)],
)
def test_a_token_that_the_tokenizer_lacks_is_named_with_its_part(
    name: str, value: Any, broken: Path
) -> None:
    whole = [1, 299] if isinstance(value, list) else 299
    edit(broken, lambda raw: raw["tokenizer"].update({name: whole}))
    Bundle.open(broken)
    edit(broken, lambda raw: raw["tokenizer"].update({name: value}))
    assert sentence(broken) == (
        f"{broken / 'tokenizer.json'} has no token 300, which the manifest names as {name}"
    )


def test_what_a_bundle_was_made_from(broken: Path) -> None:
    bundle = Bundle.open(broken)
    bundle.check_made_from(Path("a/checkpoint"), "0" * 64)
    with pytest.raises(InputError) as caught:
        bundle.check_made_from(Path("a/checkpoint"), "1" * 64)
    assert str(caught.value) == (
        f"{broken} was not made from a/checkpoint: the weights' SHA-256 differ"
    )

"""Imported checkpoints compute what the original code computed (benchmarks/import_parity.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from retnet_edge import cli
from retnet_edge.config import RetNetConfig
from retnet_edge.errors import InputError
from retnet_edge.importing.checkpoint import import_checkpoint
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.model.retnet import RetNet
from retnet_edge.tokenizer import train_tokenizer

DATA = Path(__file__).parents[2] / "data" / "import"
EXACTLY = 2e-6
"""Of the largest logit: float32 rounding. torchscale and syncdoth norm in float32 even inside a
float64 model, and fla's kernels are float32 throughout."""
TOLERANCE = 2e-5
"""Of the largest logit, where the original itself differs between its forms."""

# The form that is exactly ours, and what the others of the same project are off by, of the largest
# logit: the parallel form of torchscale and syncdoth sees the eps of the head norm through another
# scale (docs/how-to/import.md), which at eps 1e-3 shows.
EXACT = {
    "torchscale-0.3.0": "recurrent",
    "torchscale-head-tied": "recurrent",
    "syncdoth-lm-decay": "recurrent",
    "syncdoth-scaled": "recurrent",
    "fla": "chunk",
    "fla-shared": "chunk",
}
ALSO_EXACT = {
    "torchscale-0.3.0": "parallel",
    "syncdoth-lm-decay": "parallel",
    "syncdoth-scaled": "parallel",
    "fla": "recurrent",
    "fla-shared": "recurrent",
}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many tokens as the models have."""
    from tokenizers import Tokenizer, models

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0")).save(str(path))
    return path


def imported(case: str | Path, tokenizer: Path, out: Path) -> RetNet:
    import_checkpoint(DATA / case, out, tokenizer=tokenizer, say=lambda _: None)
    model = load_checkpoint(out).model
    assert isinstance(model, RetNet)
    return model.double()


def expected(case: str) -> dict[str, NDArray[Any]]:
    with np.load(DATA / case / "expected.npz") as found:
        return dict(found)


def difference(model: RetNet, case: str, theirs: str, **how: Any) -> float:
    """Largest difference from the original's logits, of the largest logit."""
    data = expected(case)
    wanted = data[theirs]
    tokens = torch.from_numpy(data["tokens"])[:, : wanted.shape[1]]
    with torch.no_grad():
        logits, _ = model(tokens, **how)
    return float(np.abs(logits.numpy() - wanted).max() / np.abs(wanted).max())


def test_every_case_is_tested() -> None:
    assert set(EXACT) == {path.name for path in DATA.iterdir()}


@pytest.mark.parametrize("case", EXACT)
def test_logits_are_the_originals(case: str, tokenizer: Path, tmp_path: Path) -> None:
    """All our forms against the original's exact one; its logits are far from trivial."""
    model = imported(case, tokenizer, tmp_path / "out")
    for how in (
        {"form": "parallel"},
        {"form": "recurrent"},
        {"form": "chunkwise", "chunk": 16},
    ):
        assert difference(model, case, EXACT[case], **how) < EXACTLY, how
    assert expected(case)[EXACT[case]].std() > 0.9


@pytest.mark.parametrize(("case", "form"), ALSO_EXACT.items())
def test_the_originals_other_form(case: str, form: str, tokenizer: Path, tmp_path: Path) -> None:
    model = imported(case, tokenizer, tmp_path / "out")
    assert difference(model, case, form) < TOLERANCE


def reconfigured(model: RetNet, **changes: Any) -> RetNet:
    other = RetNet(msgspec.structs.replace(model.config, **changes)).double()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("case", EXACT)
def test_wrong_angles_show(case: str, tokenizer: Path, tmp_path: Path) -> None:
    """The other project's θ, and its γ where there are two."""
    model = imported(case, tokenizer, tmp_path / "out")
    half = model.config.key_head_dim // 2
    torchscale = tuple(10000.0 ** (-i / (half - 1)) for i in range(half))
    rope = tuple(10000.0 ** (-i / half) for i in range(half))
    other = reconfigured(model, thetas=torchscale if case.startswith("fla") else rope)
    assert difference(other, case, EXACT[case]) > 100 * TOLERANCE


def test_wrong_decays_show(tokenizer: Path, tmp_path: Path) -> None:
    model = imported("syncdoth-lm-decay", tokenizer, tmp_path / "out")
    eq8 = tuple(1.0 - 2.0 ** (-5 - h) for h in range(3))
    assert max(abs(a - b) for a, b in zip(eq8, model.config.gammas, strict=True)) > 1e-3
    other = reconfigured(model, gammas=eq8)
    assert difference(other, "syncdoth-lm-decay", "recurrent") > 100 * TOLERANCE


def test_a_constant_eps_shows(tokenizer: Path, tmp_path: Path) -> None:
    """The case has eps 1e-3, so that Z_n counts; torchscale's own parallel form is off as well."""
    case = "torchscale-head-tied"
    model = imported(case, tokenizer, tmp_path / "out")
    constant = reconfigured(model, head_norm_eps_rule="constant")
    assert difference(constant, case, "recurrent") > 10 * TOLERANCE
    assert difference(model, case, "parallel") > 100 * TOLERANCE


def test_rows_of_queries_left_interleaved_show(tokenizer: Path, tmp_path: Path) -> None:
    """The permutation counts: queries and keys in torchscale's order give other logits."""
    model = imported("torchscale-0.3.0", tokenizer, tmp_path / "out")
    stored = torch.load(DATA / "torchscale-0.3.0" / "checkpoint.pt", weights_only=True)["model"]
    with torch.no_grad():
        for layer in range(model.config.layers):
            rows = [stored[f"decoder.layers.{layer}.retention.{name}_proj.weight"] for name in "qk"]
            ours = model.get_parameter(f"blocks.{layer}.retention.qkvg.weight")
            ours[:96] = torch.cat(rows).double()
    assert difference(model, "torchscale-0.3.0", "recurrent") > 100 * TOLERANCE


def test_tied_heads(tokenizer: Path, tmp_path: Path) -> None:
    """A tied head stays tied unless something was folded into the embedding."""
    model = imported("torchscale-head-tied", tokenizer, tmp_path / "scaled")
    assert not model.config.tie_embeddings  # scaled and normed: the head is what the table was
    folder = altered("fla", tmp_path / "tied")
    change_config(folder, tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embeddings.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    assert imported(folder, tokenizer, tmp_path / "out").config.tie_embeddings
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    model = imported(folder, tokenizer, tmp_path / "again")
    assert torch.equal(model.head.weight, model.embedding.weight)


def altered(case: str, folder: Path) -> Path:
    shutil.copytree(DATA / case, folder)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) remove weights; `__` in a name stands for a dot."""
    weights = load_file(folder / "model.safetensors")
    for name, value in changes.items():
        key = name.replace("__", ".")
        weights.pop(key, None)
        if value is not None:
            weights[key] = value
    save_file(weights, folder / "model.safetensors")


KEY = "model__layers__1__mlp__up_proj__weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({KEY: None}, r"lacks the weight model\.layers\.1\.mlp\.up_proj\.weight"),
        (
            {KEY: torch.ones(40, 47)},
            r"model\.layers\.1\.mlp\.up_proj\.weight has shape \[40, 47\], the configuration needs "
            r"\[40, 48\]",
        ),
        ({"model__surprise": torch.ones(3)}, r"unknown weight model\.surprise \(1 in all\)"),
        ({KEY: torch.ones(40, 48, dtype=torch.int8)}, r"up_proj\.weight is torch\.int8"),
        (
            {KEY: torch.full((40, 48), torch.nan)},
            r"up_proj\.weight holds a value that is not finite",
        ),
    ],
)
def test_weights_that_do_not_fit(
    change: dict[str, torch.Tensor | None], said: str, tokenizer: Path, tmp_path: Path
) -> None:
    folder = altered("fla", tmp_path / "source")
    change_weights(folder, **change)
    with pytest.raises(InputError, match=said):
        imported(folder, tokenizer, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("fla", {"feature_map": "relu"}, "feature_map is 'relu'; only None"),
        ("fla", {"use_output_gate": False}, "use_output_gate is False"),
        ("fla", {"attn": {"layers": [0]}}, "attn is"),
        ("fla", {"hidden_act": "powlu"}, "hidden_act is 'powlu'; known: swish"),
        ("fla", {"num_heads": 5}, "expand_k is 48.0, which 5 heads do not divide"),
        ("fla", {"hidden_size": "48"}, r"config.json: Expected `int`, got `str` - at `\$.hidden"),
        ("fla", {"num_hidden_layers": 1}, r"unknown weight model\.layers\.1"),
        ("fla", {"num_hidden_layers": 3}, r"lacks the weight model\.layers\.2"),
        ("fla", {"tie_word_embeddings": True}, "ties lm_head.weight to the embedding, but they"),
        ("torchscale-0.3.0", {"deepnorm": True}, "deepnorm is True; only False"),
        ("torchscale-0.3.0", {"moe_freq": 2}, "moe_freq is 2"),
        ("torchscale-0.3.0", {"activation_fn": "relu"}, "activation_fn is 'relu'; known: swish"),
        ("syncdoth-lm-decay", {"use_glu": False}, "use_glu is False; only True"),
        (
            "syncdoth-lm-decay",
            {"layernorm_embedding": True},
            "lacks the weight model.layernorm_emb",
        ),
    ],
)
def test_configurations_that_our_model_does_not_compute(
    case: str, change: dict[str, Any], said: str, tokenizer: Path, tmp_path: Path
) -> None:
    folder = altered(case, tmp_path / "source")
    change_config(folder, **change)
    with pytest.raises(InputError, match=said):
        imported(folder, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_torchscale_of_before_september_2023(tokenizer: Path, tmp_path: Path) -> None:
    folder = altered("torchscale-head-tied", tmp_path / "source")
    change_weights(folder, layers__0__retention__q_proj__bias=torch.ones(48))
    with pytest.raises(InputError, match="before 28 September 2023"):
        imported(folder, tokenizer, tmp_path / "out")


def test_files_that_cannot_be_read(tokenizer: Path, tmp_path: Path) -> None:
    """Each one sentence naming the file, and nothing left."""

    def said(folder: Path) -> str:
        with pytest.raises(InputError) as caught:
            imported(folder, tokenizer, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    folder = altered("fla-shared", tmp_path / "sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "names model-00002-of-00002.safetensors, which is not there" in said(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret"}}')
    assert "names '../secret', which is no file beside it" in said(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "not an index of weights files" in said(folder)

    folder = altered("fla", tmp_path / "fla")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:-100])
    assert "model.safetensors: cannot be read" in said(folder)
    (folder / "second.safetensors").write_bytes(raw)
    assert "several weights files without an index" in said(folder)
    (folder / "second.safetensors").unlink()
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in said(folder)
    (folder / "config.json").write_text("[1]")
    assert "config.json: holds no JSON object" in said(folder)
    (folder / "config.json").write_text("{")
    assert "config.json: not JSON" in said(folder)
    (folder / "config.json").unlink()
    assert "config.json: cannot be read" in said(folder)
    assert "no such folder, and not a hub id" in said(tmp_path / "nowhere")


def test_a_pickle_that_would_run_code_is_not_run(tokenizer: Path, tmp_path: Path) -> None:
    folder = altered("torchscale-0.3.0", tmp_path / "source")
    torch.save({"model": {"a": Runs(tmp_path / "ran")}}, folder / "checkpoint.pt")
    with pytest.raises(InputError, match="not a file of weights only"):
        imported(folder, tokenizer, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    torch.save({"args": 3}, folder / "checkpoint.pt")
    with pytest.raises(InputError, match="'args' is not the name of a tensor"):
        imported(folder, tokenizer, tmp_path / "out")


class Runs:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        import os

        return os.mkdir, (str(self.path),)


def test_weights_of_another_architecture(tokenizer: Path, tmp_path: Path) -> None:
    folder = altered("fla", tmp_path / "source")
    save_file({"transformer.wte.weight": torch.ones(3, 3)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"first weight is transformer\.wte\.weight"):
        imported(folder, tokenizer, tmp_path / "out")


def test_the_command(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tokenizer beside the weights is taken along; one that is too large is refused."""
    folder = altered("fla", tmp_path / "source")
    out = tmp_path / "out"
    assert cli.main(["import", str(folder), str(out)]) == 2
    assert "has no tokenizer.json; name one with --tokenizer" in capsys.readouterr().err
    large = train_tokenizer(["some text"], 300)
    large.save(str(folder / "tokenizer.json"))
    assert cli.main(["import", str(folder), str(out)]) == 2
    assert (
        "264 tokens with ids up to 263 do not fit the model's vocabulary of 97"
        in capsys.readouterr().err
    )
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    assert cli.main(["import", str(folder), str(out), "--format", "fla"]) == 0
    printed = capsys.readouterr().out
    assert "fla: " in printed
    assert "2 layers of 3 heads (16 × 32), vocabulary 97" in printed
    assert cli.main(["import", str(folder), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["import", str(folder), str(tmp_path / "b"), "--format", "syncdoth"]) == 2
    assert "lacks the weight model.embed_tokens.weight" in capsys.readouterr().err


def test_an_imported_model_is_a_config_of_ours(tokenizer: Path, tmp_path: Path) -> None:
    config = imported("torchscale-head-tied", tokenizer, tmp_path / "out").config
    assert isinstance(config, RetNetConfig)
    assert config.head_norm_eps_rule == "z_n"
    assert config.activation == "gelu"
    assert (config.key_head_dim, config.value_head_dim, config.ffn_dim) == (16, 32, 40)
    assert config.gammas == pytest.approx([1 - 2**-5, 1 - 2**-6, 1 - 2**-7], abs=1e-7)


def test_a_hub_id_without_the_hub(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    with pytest.raises(InputError, match="nobody/nothing: no such folder here, and not to be had"):
        import_checkpoint("nobody/nothing", tmp_path / "out", tokenizer=tokenizer)

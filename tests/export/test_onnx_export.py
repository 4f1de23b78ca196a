"""The exported graphs are the float64 model: any length, batch, position and state in."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from micro_checkpoint import (
    VARIANTS,
    VOCABULARY,
    Exported,
    call,
    error,
    exported_once,
    random_states,
    random_tokens,
    reference,
    transformer_reference,
)

from retnet_edge.config import RetNetConfig, TransformerConfig, encode_config
from retnet_edge.errors import InputError
from retnet_edge.export.baseline import export_baseline
from retnet_edge.export.export import export
from retnet_edge.model.checkpoint import load_checkpoint
from retnet_edge.runtime.backends.select import open_session
from retnet_edge.runtime.bundle.bundle import Bundle
from retnet_edge.runtime.parity.golden import replay_golden

TOLERANCE = 2e-5
LENGTHS = (1, 2, 127, 128, 129, 300)
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """Every variant, exported once and on demand."""

    class OnDemand(dict[str, Exported]):
        def __missing__(self, name: str) -> Exported:
            self[name] = exported_once(tmp_path_factory.getbasetemp(), name)
            return self[name]

    return OnDemand()


def config_of(bundle: Exported) -> RetNetConfig:
    config = bundle.model.config
    assert isinstance(config, RetNetConfig)
    return config


def check(bundle: Exported, kind: str, batch: int, length: int, position: int) -> None:
    """One call of a graph from states that are not zero, against the float64 model."""
    tokens, states = random_tokens(batch, length), random_states(config_of(bundle), batch)
    wanted, wanted_states = reference(bundle.model, tokens, states, position)
    found, found_states = call(bundle.session(kind), tokens, states, position)
    assert found.dtype == np.float32
    assert error(found, wanted) <= TOLERANCE
    for a, b in zip(found_states, wanted_states, strict=True):
        assert a.dtype == np.float32
        assert error(a, b) <= TOLERANCE


@pytest.mark.parametrize("position", [0, 10, 1_000_000, 1_048_577])
@pytest.mark.parametrize("batch", [1, 3])
def test_step(exported: dict[str, Exported], batch: int, position: int) -> None:
    check(exported["base"], "step", batch, 1, position)


@pytest.mark.parametrize("position", [0, 1_000_000])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", LENGTHS)
def test_prefill(exported: dict[str, Exported], length: int, batch: int, position: int) -> None:
    check(exported["base"], "prefill", batch, length, position)


@pytest.mark.parametrize("position", [0, 1_000_000])
@pytest.mark.parametrize(("kind", "length"), [("step", 1), ("prefill", 5), ("prefill", 259)])
@pytest.mark.parametrize("variant", ["untied", "mlp gelu", "z_n", "affine"])
def test_variants(
    exported: dict[str, Exported], variant: str, kind: str, length: int, position: int
) -> None:
    check(exported[variant], kind, 2, length, position)


def test_the_position_is_read(exported: dict[str, Exported]) -> None:
    """The tests above can fail: one position further is another answer."""
    bundle = exported["base"]
    states = random_states(config_of(bundle), 1)
    for kind in ("step", "prefill"):
        session = bundle.session(kind)
        tokens = random_tokens(1, 1 if kind == "step" else 9)
        here, _ = call(session, tokens, states, 1_000_000)
        there, _ = call(session, tokens, states, 1_000_001)
        assert error(here, there) > 1e-2


def test_rows_of_a_batch_have_their_own_positions(exported: dict[str, Exported]) -> None:
    bundle = exported["base"]
    states = random_states(config_of(bundle), 2)
    tokens = random_tokens(2, 130)
    positions = np.array([5, 1_000_000])
    for kind, ids in (("step", tokens[:, :1]), ("prefill", tokens)):
        feeds = {"tokens": ids, "position": positions}
        feeds |= {f"state_{i}": state for i, state in enumerate(states)}
        logits, *_ = bundle.session(kind).run(None, feeds)
        for row, position in enumerate(positions):
            one = [state[row : row + 1] for state in states]
            wanted, _ = reference(bundle.model, ids[row : row + 1], one, int(position))
            assert error(logits[row : row + 1], wanted) <= TOLERANCE


def test_a_step_after_a_prefill_of_1000_tokens_is_1001_steps(
    exported: dict[str, Exported],
) -> None:
    bundle = exported["base"]
    config = config_of(bundle)
    tokens = random_tokens(1, 1_001)
    shape = (1, config.heads, config.key_head_dim, config.value_head_dim)
    zero = [np.zeros(shape, np.float32) for _ in range(config.layers)]
    step = bundle.session("step")
    states = zero
    for n in range(1_001):
        logits, states = call(step, tokens[:, n : n + 1], states, n)
    _, after = call(bundle.session("prefill"), tokens[:, :1_000], zero, 0)
    chat, chat_states = call(step, tokens[:, 1_000:], after, 1_000)
    wanted, wanted_states = reference(bundle.model, tokens, zero, 0)
    assert error(chat, logits) <= TOLERANCE
    for found in (chat, logits):
        assert error(found, wanted) <= TOLERANCE
    for found_states in (chat_states, states):
        for a, b in zip(found_states, wanted_states, strict=True):
            assert error(a, b) <= TOLERANCE


def test_prefill_split_anywhere_equals_one_call(exported: dict[str, Exported]) -> None:
    bundle = exported["base"]
    prefill, tokens = bundle.session("prefill"), random_tokens(2, 400)
    start = random_states(config_of(bundle), 2)
    whole, whole_states = call(prefill, tokens, start, 7)
    for cut in (1, 127, 128, 256, 399):
        _, states = call(prefill, tokens[:, :cut], start, 7)
        logits, states = call(prefill, tokens[:, cut:], states, 7 + cut)
        assert error(logits, whole) <= TOLERANCE
        for a, b in zip(states, whole_states, strict=True):
            assert error(a, b) <= TOLERANCE


def test_names_types_and_axes_are_the_contracts(exported: dict[str, Exported]) -> None:
    bundle = exported["base"]
    for kind in ("step", "prefill"):
        session = bundle.session(kind)
        inputs = [(v.name, v.type, v.shape) for v in session.get_inputs()]
        outputs = [(v.name, v.type, v.shape) for v in session.get_outputs()]
        state = ["batch", 2, 10, 14]
        assert inputs == [
            ("tokens", "tensor(int64)", ["batch", 1 if kind == "step" else "tokens"]),
            ("position", "tensor(int64)", ["batch"]),
            ("state_0", "tensor(float)", state),
            ("state_1", "tensor(float)", state),
        ]
        assert outputs == [
            ("logits", "tensor(float)", ["batch", VOCABULARY]),
            ("next_state_0", "tensor(float)", state),
            ("next_state_1", "tensor(float)", state),
        ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_lie_once_in_one_file(exported: dict[str, Exported], variant: str) -> None:
    """Both graphs read weights.bin, at the same places, and it is the parameters' size."""
    bundle = exported[variant]
    graphs = sorted(bundle.bundle.glob("*.onnx"))
    assert len(graphs) == (1 if variant == "transformer" else 2)
    used: dict[tuple[int, int], set[str]] = {}
    for path in graphs:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {e.key: e.value for e in tensor.external_data}
                assert entry["location"] == "weights.bin"
                place = int(entry["offset"]), int(entry["length"])
                used.setdefault(place, set()).add(path.name)
            else:
                assert len(tensor.raw_data) < 1_024
        for node in model.graph.node:
            for attribute in node.attribute:
                assert attribute.t.ByteSize() < 1_024, "a large constant hides in the graph"
        assert path.stat().st_size < 150_000
    stored = sum(length for _, length in used)
    size = (bundle.bundle / "weights.bin").stat().st_size
    alignment = 4_096 * len(used)
    # constants that are no parameters (decay masks of the prefill) are the only extra
    masks = 0 if variant == "transformer" else 4 * 2 * 128 * 128 * 2 + 8 * 4_096
    assert 0.97 * 4 * bundle.parameters <= stored <= 1.01 * 4 * bundle.parameters + masks
    assert stored <= size <= stored + alignment
    places = sorted(used)
    assert all(a[0] + a[1] <= b[0] for a, b in itertools.pairwise(places))
    if len(graphs) == 2:
        shared = sum(length for (_, length), names in used.items() if len(names) == 2)
        assert shared >= 0.97 * 4 * bundle.parameters


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_checker_and_no_trace_of_this_machine(
    exported: dict[str, Exported], variant: str
) -> None:
    bundle = exported[variant]
    for path in bundle.bundle.glob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
        raw = path.read_bytes()
        for trace in (str(ROOT), str(bundle.checkpoint.parent), "site-packages", "/tmp/",
                      "retnet_edge/", "torch.nn", "pkg.torch", ".py"):  # fmt: skip
            assert trace.encode() not in raw, trace
        model = onnx.load(path, load_external_data=False)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        assert [o.name for o in inferred.graph.output] == [o.name for o in model.graph.output]
        assert (model.producer_name, model.doc_string) == ("retnet-edge", "")


@pytest.mark.parametrize("variant", VARIANTS)
def test_metadata_is_the_kind_and_the_configuration(
    exported: dict[str, Exported], variant: str
) -> None:
    bundle = exported[variant]
    for path in bundle.bundle.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert {p.key: p.value for p in model.metadata_props} == {
            "retnet_edge.kind": path.stem,
            "retnet_edge.config": encode_config(bundle.model.config).decode(),
        }


def test_the_transformers_steps_equal_its_float64_model(exported: dict[str, Exported]) -> None:
    """Twenty steps from the empty cache, logits and caches, for two sequences."""
    bundle = exported["transformer"]
    config = bundle.model.config
    assert isinstance(config, TransformerConfig)
    tokens = random_tokens(2, 20)
    wanted, caches = transformer_reference(bundle.model, tokens)
    session = bundle.session("step")
    assert [v.name for v in session.get_inputs()] == [
        "tokens", "position", "key_0", "value_0", "key_1", "value_1",
    ]  # fmt: skip
    shape = (2, config.heads, 0, config.key_head_dim)
    states = [np.zeros(shape, np.float32) for _ in range(2 * config.layers)]
    for n in range(20):
        logits, states = call(session, tokens[:, n : n + 1], states, n)
        assert error(logits, wanted[:, n].numpy()) <= TOLERANCE
        assert all(state.shape[2] == n + 1 for state in states)
    for found, exact in zip(states, (x for pair in caches for x in pair), strict=True):
        assert error(found, exact.numpy()) <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_manifest_opens_and_says_what_is_there(
    exported: dict[str, Exported], variant: str
) -> None:
    source = exported[variant]
    bundle = Bundle.open(source.bundle)
    manifest = bundle.manifest
    assert manifest.model.parameters == source.parameters
    assert manifest.model.config == json.loads(encode_config(source.model.config))
    assert manifest.verification.status == "unverified"
    assert manifest.quantization.recipe == "fp32"
    assert (
        manifest.provenance.checkpoint_sha256 == load_checkpoint(source.checkpoint).weights_sha256()
    )
    assert {g.file for g in manifest.graphs} == {p.name for p in source.bundle.glob("*.onnx")}
    assert all(g.external_data == ("weights.bin",) for g in manifest.graphs)
    on_disk = {p.name for p in source.bundle.iterdir()} - {"manifest.json"}
    assert set(manifest.files) == on_disk
    if variant == "transformer":
        assert manifest.model.kind == "transformer"
        assert manifest.state_bytes(10) == 10 * 4 * 2 * 2 * 2 * 10
        assert "golden.npz" not in on_disk
    else:
        assert manifest.model.kind == "retnet"
        assert manifest.state_bytes(10) == config_of(source).state_bytes()
        assert "golden.npz" in on_disk
    assert str(ROOT) not in (source.bundle / "manifest.json").read_text()


@pytest.mark.parametrize("variant", ["base", "untied", "mlp gelu", "z_n", "affine"])
def test_the_golden_runs_replay_through_a_session(
    exported: dict[str, Exported], variant: str
) -> None:
    """Near and far, through step and through prefill, states too."""
    source = exported[variant]
    golden = np.load(source.bundle / "golden.npz")
    bundle = Bundle.open(source.bundle)
    session = open_session(bundle, threads=1)
    near, far = golden["near_tokens"], golden["far_tokens"]
    wanted = [golden[f"near_state_{i}"] for i in range(2)]
    assert np.abs(golden["near_logits"]).max() > 1.0

    rows = np.stack([session.step(int(token)).copy() for token in near])
    assert np.abs(rows[-16:] - golden["near_logits"]).max() <= 2e-4
    for a, b in zip(session.states(), wanted, strict=True):
        assert np.abs(a - b).max() <= 2e-4
    session.reset()
    assert np.abs(session.prefill(near.tolist()) - golden["near_logits"][-1]).max() <= 2e-4
    for a, b in zip(session.states(), wanted, strict=True):
        assert np.abs(a - b).max() <= 2e-4

    session.load_states(wanted, 1_000_000)
    rows = np.stack([session.step(int(token)).copy() for token in far])
    assert session.position == 1_000_016
    assert np.abs(rows - golden["far_logits"]).max() <= 2e-4
    session.load_states(wanted, 1_000_000)
    assert np.abs(session.prefill(far.tolist()) - golden["far_logits"][-1]).max() <= 2e-4

    replayed = replay_golden(bundle, session)
    assert replayed.far_logit_error == np.abs(rows - golden["far_logits"]).max()
    assert replayed.near_logit_error <= 2e-4
    assert replayed.relative_state_error <= 1e-5


def test_golden_is_the_float64_model(exported: dict[str, Exported]) -> None:
    """By the recurrent form, which is not the one that wrote it."""
    source = exported["base"]
    golden = np.load(source.bundle / "golden.npz")
    zero = [np.zeros((1, 2, 10, 14)) for _ in range(2)]
    near, states = reference(source.model, golden["near_tokens"][None], zero, 0)
    assert error(golden["near_logits"][-1], near[0]) <= 1e-6
    for i, state in enumerate(states):
        assert error(golden[f"near_state_{i}"], state) <= 1e-6
    start = [golden[f"near_state_{i}"] for i in range(2)]
    far, _ = reference(source.model, golden["far_tokens"][None], start, 1_000_000)
    assert error(golden["far_logits"][-1], far[0]) <= 1e-6


def test_exporting_twice_gives_the_same_files(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    source = exported["base"]
    again = export(source.checkpoint, tmp_path / "again.edge", say=lambda text: None)
    for name in ("step.onnx", "prefill.onnx", "weights.bin", "tokenizer.json"):
        assert (again / name).read_bytes() == (source.bundle / name).read_bytes(), name


def test_an_existing_target_is_refused_untouched(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    target = tmp_path / "there.edge"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=r"there\.edge exists already"):
        export(exported["base"].checkpoint, target, say=lambda text: None)
    assert [p.name for p in target.iterdir()] == ["mine.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["there.edge"]


def test_an_unknown_backend_names_the_known(exported: dict[str, Exported], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown backend 'tflite'; --to takes: onnx"):
        export(exported["base"].checkpoint, tmp_path / "x.edge", to=["onnx", "tflite"])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_does_not_load_leaves_nothing(
    exported: dict[str, Exported], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no such checkpoint directory"):
        export(tmp_path / "nowhere", tmp_path / "x.edge")
    assert not list(tmp_path.iterdir())


def test_a_lowering_that_fails_leaves_nothing(
    exported: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retnet_edge.export.export.lower_onnx", fail)
    with pytest.raises(KeyboardInterrupt):
        export(exported["base"].checkpoint, tmp_path / "x.edge", say=lambda text: None)
    assert not list(tmp_path.iterdir())


def test_the_baseline_of_a_checkpoint(exported: dict[str, Exported], tmp_path: Path) -> None:
    """A Transformer whose cache grows; of a Transformer there is none."""
    source = exported["untied"]
    manifest = Bundle.open(export_baseline(load_checkpoint(source.checkpoint), tmp_path)).manifest
    assert manifest.model.kind == "transformer"
    assert all(state.growing_axis == 2 for state in manifest.states)
    with pytest.raises(InputError, match="the baseline is derived from a RetNet checkpoint"):
        export_baseline(load_checkpoint(exported["transformer"].checkpoint), tmp_path)

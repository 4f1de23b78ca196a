"""A bundle small enough to write by hand: one layer of retention, or of attention, in ONNX.

One layer, and logits of the last token only, so the whole prefill is a closed form:
S' = γ^T S + Σ_j γ^(T-1-j) k_jᵀ v_j and o = q_{T-1} S', which is also the step (T = 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
import tokenizers
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from retnet_edge.atomic import new_folder
from retnet_edge.runtime.bundle.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    GraphSpec,
    Manifest,
    ModelSpec,
    Provenance,
    Quantization,
    StateSpec,
    TensorSpec,
    TokenizerSpec,
    Tolerance,
    Verification,
    decode,
    encode,
)
from retnet_edge.runtime.bundle.writer import write_manifest

END_OF_TEXT = 0
TEXT = [
    "The cat sat on the mat, and the dog sat by the door.",
    "Dogs and cats and other animals were all over the place.",
    "Überraschung! Naïve café façade – déjà vu… 日本語 and emoji 🙂🙃.",
]
Float = NDArray[np.float64]


def train_tokenizer(vocab_size: int = 300) -> tokenizers.Tokenizer:
    """A byte-level BPE whose token 0 is <|endoftext|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


@dataclass(frozen=True)
class TinyModel:
    """Weights of the layer, float32; `vocab` tokens, `heads` heads of `key` × `value` channels."""

    vocab: int
    heads: int = 2
    key: int = 4
    value: int = 6
    width: int = 8
    seed: int = 0
    weights: dict[str, NDArray[np.float32]] = field(init=False)
    gamma: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)

        def normal(*shape: int) -> NDArray[np.float32]:
            return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), dtype=np.float32)

        weights = {
            "embedding": normal(self.vocab, self.width) * np.float32(8),
            "theta": (0.1 * rng.random(self.width)).astype(np.float32),
            "query": normal(self.width, self.heads * self.key),
            "key": normal(self.width, self.heads * self.key),
            "value": normal(self.width, self.heads * self.value),
            "head": normal(self.heads * self.value, self.vocab),
        }
        object.__setattr__(self, "weights", weights)
        gamma = (1 - np.exp2(-2.0 - np.arange(self.heads))).astype(np.float32)
        object.__setattr__(self, "gamma", gamma)

    def _project(self, tokens: list[int], position: int) -> tuple[Float, Float, Float]:
        """q, k [heads, T, key] and v [heads, T, value] in float64."""
        w = {name: value.astype(np.float64) for name, value in self.weights.items()}
        n = position + np.arange(len(tokens))
        x = w["embedding"][tokens] + np.sin(n[:, None] * w["theta"])

        def split(name: str, width: int) -> Float:
            heads = (x @ w[name]).reshape(len(tokens), self.heads, width)
            return np.ascontiguousarray(heads.transpose(1, 0, 2), dtype=np.float64)

        return split("query", self.key), split("key", self.key), split("value", self.value)

    def retention(self, tokens: list[int], state: Float, position: int) -> tuple[Float, Float]:
        """Logits [vocab] and state [heads, key, value] after `tokens`, token by token."""
        q, k, v = self._project(tokens, position)
        for t in range(len(tokens)):
            outer = k[:, t, :, None] * v[:, t, None, :]
            state = state * self.gamma[:, None, None].astype(np.float64) + outer
        out = (q[:, -1, None, :] @ state).reshape(-1)
        return out @ self.weights["head"].astype(np.float64), state

    def attention(self, tokens: list[int]) -> Float:
        """Logits [vocab] of softmax attention after `tokens`, from an empty cache."""
        q, k, v = self._project(tokens, 0)
        scores = (k @ q[:, -1, :, None])[..., 0]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out = (weights[:, None, :] @ v).reshape(-1)
        return np.asarray(out @ self.weights["head"].astype(np.float64))


Kind = Literal["step", "prefill"]


def build_graph(
    model: TinyModel, kind: Kind, *, growing: bool
) -> tuple[onnx.ModelProto, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The ONNX model (weights inside), and its inputs and outputs as the manifest names them."""
    h, dk, dv = model.heads, model.key, model.value
    nodes: list[onnx.NodeProto] = []
    constants = {**model.weights, "log_gamma": np.log(model.gamma).reshape(1, h, 1, 1)}

    def op(name: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(name, inputs, [output], **attributes))
        return output

    def ints(name: str, *values: int) -> str:
        constants[name] = np.array(values, dtype=np.int64)
        return name

    constants["zero"] = np.array(0, dtype=np.int64)
    constants["one"] = np.array(1, dtype=np.int64)
    constants["minus_one"] = np.array(-1, dtype=np.int64)
    op("Gather", ["embedding", "tokens"], "embedded")
    op("Shape", ["tokens"], "tokens_shape")
    op("Gather", ["tokens_shape", "one"], "T")
    op("Range", ["zero", "T", "one"], "offsets")
    op("Add", [op("Unsqueeze", ["position", ints("axis1", 1)], "first"), "offsets"], "n")
    op("Cast", [op("Unsqueeze", ["n", ints("axis2", 2)], "n3")], "n_float", to=TensorProto.FLOAT)
    op("Sin", [op("Mul", ["n_float", "theta"], "angles")], "sines")
    op("Add", ["embedded", "sines"], "x")
    for name, width in (("query", dk), ("key", dk), ("value", dv)):
        flat = op("MatMul", ["x", name], f"{name}_flat")
        split = op("Reshape", [flat, ints(f"{name}_shape", 0, 0, h, width)], f"{name}_split")
        op("Transpose", [split], f"{name}_BHTK", perm=[0, 2, 1, 3])
    op("Slice", ["query_BHTK", ints("last", -1), ints("end", 2**62), "axis2"], "query_last")
    if growing:
        op("Concat", ["key_0", "key_BHTK"], "next_key_0", axis=2)
        op("Concat", ["value_0", "value_BHTK"], "next_value_0", axis=2)
        op("Transpose", ["next_key_0"], "keys_T", perm=[0, 1, 3, 2])
        op("Softmax", [op("MatMul", ["query_last", "keys_T"], "scores")], "weights", axis=-1)
        op("MatMul", ["weights", "next_value_0"], "out")
    else:
        op("Cast", ["T"], "T_float", to=TensorProto.FLOAT)
        op("Exp", [op("Mul", ["log_gamma", "T_float"], "log_decay")], "decay")
        op("Range", [op("Sub", ["T", "one"], "T_less_1"), "minus_one", "minus_one"], "age")
        op("Cast", [op("Unsqueeze", ["age", "axis1"], "age2")], "age_float", to=TensorProto.FLOAT)
        op("Exp", [op("Mul", ["log_gamma", "age_float"], "log_zeta")], "zeta")
        op("Mul", ["key_BHTK", "zeta"], "keys_decayed")
        op("Transpose", ["keys_decayed"], "keys_T", perm=[0, 1, 3, 2])
        op("MatMul", ["keys_T", "value_BHTK"], "added")
        op("Add", [op("Mul", ["state_0", "decay"], "kept"), "added"], "next_state_0")
        op("MatMul", ["query_last", "next_state_0"], "out")
    merged = op("Reshape", ["out", ints("merge", 0, -1)], "merged")
    op("MatMul", [merged, "head"], "logits")

    def spec(name: str, dtype: Literal["float32", "int64"], *shape: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=shape)

    inputs = [
        spec("tokens", "int64", "batch", 1 if kind == "step" else "T"),
        spec("position", "int64", "batch"),
    ]
    outputs = [spec("logits", "float32", "batch", model.vocab)]
    if growing:
        for name, width in (("key", dk), ("value", dv)):
            inputs.append(spec(f"{name}_0", "float32", "batch", h, "past", width))
            outputs.append(spec(f"next_{name}_0", "float32", "batch", h, "past_and_T", width))
    else:
        inputs.append(spec("state_0", "float32", "batch", h, dk, dv))
        outputs.append(spec("next_state_0", "float32", "batch", h, dk, dv))

    def value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
        types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        return helper.make_tensor_value_info(spec.name, types[spec.dtype], list(spec.shape))

    graph = helper.make_graph(
        nodes,
        f"tiny_{kind}",
        [value_info(s) for s in inputs],
        [value_info(s) for s in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return proto, tuple(inputs), tuple(outputs)


def move_weights_out(proto: onnx.ModelProto, weights: Path) -> None:
    """Put the float matrices into the file `weights` (the same bytes for every graph)."""
    blob = b""
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2:
            set_external_data(tensor, weights.name, offset=len(blob), length=len(tensor.raw_data))
            blob += tensor.raw_data
            tensor.ClearField("raw_data")
    weights.write_bytes(blob)


def write_tiny_bundle(
    target: Path, *, model: TinyModel | None = None, growing: bool = False, vocab: int | None = None
) -> TinyModel:
    """Write the bundle to `target` and return the model that it computes.

    `vocab`: rows of the embedding, where it shall differ from the tokenizer's size.
    """
    tokenizer = train_tokenizer()
    model = model or TinyModel(vocab or tokenizer.get_vocab_size())
    with new_folder(target) as folder:
        tokenizer.save(str(folder / "tokenizer.json"))
        graphs = []
        kinds: tuple[Kind, ...] = ("step", "prefill")
        for kind in kinds:
            proto, inputs, outputs = build_graph(model, kind, growing=growing)
            move_weights_out(proto, folder / "weights.bin")
            onnx.save_model(proto, folder / f"{kind}.onnx")
            graphs.append(
                GraphSpec(
                    file=f"{kind}.onnx",
                    kind=kind,
                    backend="onnxruntime",
                    inputs=inputs,
                    outputs=outputs,
                    external_data=("weights.bin",),
                    operator_sets={"": 18},
                )
            )
        states = tuple(
            StateSpec(
                input=spec.name, output=f"next_{spec.name}", dtype="float32", shape=spec.shape
            )
            for spec in inputs[2:]
        )
        write_manifest(folder, _manifest(model, tuple(graphs), states, growing))
    return model


def _manifest(
    model: TinyModel, graphs: tuple[GraphSpec, ...], states: tuple[StateSpec, ...], growing: bool
) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelSpec(
            kind="transformer" if growing else "retnet",
            vocab_size=model.vocab,
            parameters=sum(array.size for array in model.weights.values()),
            config={"heads": model.heads},
        ),
        graphs=graphs,
        states=states,
        tokenizer=TokenizerSpec(file="tokenizer.json", end_of_text=END_OF_TEXT),
        quantization=Quantization(recipe="fp32"),
        tolerance=Tolerance(
            max_abs_logit_error=2e-4, perplexity_ratio=1.001, mean_kl=1e-6, top1_agreement=1.0
        ),
        provenance=Provenance(checkpoint_sha256="0" * 64, versions={"retnet-edge": "0.1.0"}),
        verification=Verification(status="unverified"),
        files={},
    )


def rewrite_manifest(bundle: Path, *, rehash: bool = False, **changes: Any) -> None:
    """Replace fields of the manifest, and with `rehash` make sizes and hashes match the files."""
    manifest = decode((bundle / MANIFEST_FILE).read_bytes(), "test")
    manifest = msgspec.structs.replace(manifest, **changes)
    if rehash:
        write_manifest(bundle, manifest)
    else:
        (bundle / MANIFEST_FILE).write_bytes(encode(manifest))

"""Installed as optimum.commands.register.register_retnet_edge; optimum-cli imports it by place."""

from optimum.commands.export.onnx import ONNXExportCommand

from retnet_edge.integrations.optimum.cli import install

install(ONNXExportCommand)

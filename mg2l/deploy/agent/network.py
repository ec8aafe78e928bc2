"""A network of an exported agent, run by onnxruntime."""

from __future__ import annotations

from .context import Array

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'exported agents need the package onnxruntime; install it with: pip install "mg2l[export]"'
    ) from error


class Network:
    """An ONNX model, run on the CPU by one thread.

    Args:
        model: content of its file.
    """

    def __init__(self, model: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, **inputs: Array) -> dict[str, Array]:
        """Outputs by name, for inputs by name; the first axis of all is the batch."""
        return dict(zip(self.outputs, self.session.run(self.outputs, inputs), strict=True))

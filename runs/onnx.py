"""A run as a folder of ONNX files."""

from pathlib import Path

from common.files import folder_written_aside, sync
from inference.loading import configuration_of
from interop.folders import write_json
from interop.onnx import OPSET, check_exportable, check_installed, measure_onnx, write_onnx
from interop.parity import NotCompared
from runs.hugging_face import Exchanged, count_of, whole_model, write_beside, write_card

_LOADED = """\
import numpy
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"input_ids": numpy.array([[1, 2, 3]])})
"""


def onnx_from_run(checkpoint: Path, folder: Path) -> Exchanged:
    """Write a checkpoint as ONNX files, aside and renamed. Raises UserError and OSError."""
    check_installed()
    saved = configuration_of(checkpoint)
    model = whole_model(checkpoint, saved)
    check_exportable(model)
    with folder_written_aside(folder) as new:
        tokens, notes = write_beside(checkpoint, saved, new)
        written = write_onnx(model, new)
        for file in new.glob("*.onnx*"):
            sync(file)
        sizes = {"vocab_size": saved.model.vocab_size, "block_size": saved.model.block_size}
        sizes |= {"context_limit": model.context_limit, "opset": OPSET}
        write_json(new / "config.json", {"name": saved.model.name, **sizes, **tokens, "files": written.files})
        write_card(checkpoint, saved, new, "onnx", f"{saved.model.name}, of {count_of(model):,} parameters", _LOADED)
        try:
            compared = "\n".join(map(str, measure_onnx(model, new, written.files)))
        except NotCompared as reason:
            compared = f"logits are not compared: {reason}"
        return Exchanged(saved.model, count_of(model), compared, [*notes, *written.notes])

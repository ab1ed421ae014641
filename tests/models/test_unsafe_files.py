"""A file that would run code when it is read is refused, and nobody is told to read it all the same."""

import pickle
from pathlib import Path

import pytest
import torch

from wsi_dbps.core.errors import CheckpointError, ConfigError
from wsi_dbps.models.encoders.weights_file import load_weights_file
from wsi_dbps.training.checkpoint import load_checkpoint

SAID = "it holds Python objects other than tensors, which could run code; save its tensors alone (.safetensors)"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_with_code_is_refused_without_advice_to_run_it(tmp_path: Path, how: str) -> None:
    path, ran = tmp_path / "best.pt", tmp_path / "ran"
    if how == "torch":
        torch.save({"model": Payload(ran)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(ran), protocol=2))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(caught.value) == f"{path}: not a readable checkpoint: UnpicklingError {SAID}"
    with pytest.raises(ConfigError) as refused:
        load_weights_file(torch.nn.Linear(1, 1), path, "name")
    assert str(refused.value) == f"{path}: not a weights file: {SAID}"
    assert not ran.exists()

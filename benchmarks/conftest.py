"""What every benchmark records beside its time: machine, versions, commit."""
import platform

import pytest
import torch

from alexnet_mp.devices import device_name
from alexnet_mp.run_directory import source_commit


@pytest.fixture(autouse=True, scope="session")
def float32_is_float32():
    torch.backends.cudnn.allow_tf32 = False  # as in training; on by default for convolutions


@pytest.fixture(autouse=True)
def provenance(request):
    if "benchmark" in request.fixturenames:
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        request.getfixturevalue("benchmark").extra_info.update(
            device=device_name(device), torch=torch.__version__, python=platform.python_version(), commit=source_commit())

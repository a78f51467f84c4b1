from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    compiler: str
    torch_built: str
    torch_target: str
    cuda_built: str
    cpu_isas: list[str]

def build_info() -> BuildInfo: ...
def cpu_isa() -> str: ...
def set_cpu_isa(name: str) -> None: ...
def wait_for_bank_readers() -> None: ...

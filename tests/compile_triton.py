"""Compiles the Triton kernels for GPUs that need not be here; prints one JSON line a kernel.

A program of its own, because a process that interprets the kernels cannot compile them.
"""

import itertools
import json
import re
import subprocess
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from weibull_kernels.kernels import triton as backend
from weibull_kernels.kernels import triton_language as kernels

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {
    "fp32": (torch.float32,) * 3,
    "bf16, fp32 moments": (torch.bfloat16, torch.float32, torch.float32),
    "bf16": (torch.bfloat16,) * 3,
    "fp64": (torch.float64,) * 3,
    "fp32 without moments": (torch.float32, None, None),
}
POINTERS = {
    "chunks_ptr": "*i64",
    "rows_ptr": "*i64",
    "bias_correction1_ptr": "*fp64",
    "bias_correction2_ptr": "*fp64",
    "eps_ptr": "*fp64",
    "partials_ptr": "*fp64",
    "sums_ptr": "*fp64",
    "histograms_ptr": "*i64",
}


def compiled(kernel, constants, target):
    names = kernel.arg_names
    signature = {name: POINTERS.get(name, "constexpr") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    return triton.compile(source, target=target, options=backend.LAUNCH)


def local_bytes(cubin: bytes) -> int:
    """Stack and local memory of a kernel on an NVIDIA GPU: spilled registers lie there."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    sizes = re.findall(r"(?:STACK|LOCAL):(\d+)", usage)
    assert len(sizes) == 2, f"cuobjdump speaks otherwise now: {usage}"
    return sum(map(int, sizes))


def facts(kernel) -> dict:
    if "ptx" in kernel.asm:
        wide = re.findall(r"ld\.global\S*\.(?:v4\.b32|v2\.b64)", kernel.asm["ptx"])
        return {"loads_of_16_bytes": len(wide), "spilled_bytes": local_bytes(kernel.asm["cubin"])}
    code = kernel.asm["amdgcn"]
    spills = re.findall(r"(?:vgpr_spill_count|sgpr_spill_count|ScratchSize):\s*(\d+)", code)
    assert len(spills) == 3, "the assembly names its spills otherwise now"
    return {
        "loads_of_16_bytes": len(re.findall(r"(?:global|flat|buffer)_load_dwordx4", code)),
        "spilled_bytes": sum(map(int, spills)),
    }


def main() -> None:
    for (name, target), (dtypes, columns), histogram in itertools.product(
        TARGETS.items(), DTYPES.items(), (False, True)
    ):
        constants = backend.constants(*columns, warp_size=target.warp_size) | {"HAS_HISTOGRAM": histogram}
        kernel = compiled(kernels.sum_chunks, constants, target)
        print(json.dumps({"target": name, "dtypes": dtypes, "histogram": histogram, **facts(kernel)}))
    for name, target in TARGETS.items():
        kernel = compiled(kernels.combine_chunks, {"CHUNK": backend.CHUNK, "BLOCK": backend.COMBINED}, target)
        print(json.dumps({"target": name, "dtypes": "combine", "histogram": False, **facts(kernel)}))


if __name__ == "__main__":
    main()

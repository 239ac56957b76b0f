"""Compiles the Triton kernels for GPUs that need not be here; prints one JSON line a kernel.

A program of its own, because a process that interprets the kernels cannot compile them.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from weibull_kernels.kernels.triton_launch import Kernel, combining_kernel, step_kernel, sum_kernel
from weibull_kernels.kernels.triton_tuning import tuning_of

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
# Of weight, gradient, moments and largest second moment; what the step does besides.
STEPS = {
    "fp32": ((torch.float32,) * 4, {"ledger"}),
    "fp32, no ledger": ((torch.float32,) * 4, set()),
    "fp32, scaler": ((torch.float32,) * 4, {"ledger", "scaler"}),
    "fp32, amsgrad": ((torch.float32,) * 5, {"ledger"}),
    "bf16, fp32 moments": ((torch.bfloat16,) * 2 + (torch.float32,) * 2, {"ledger"}),
    "bf16, scaler": ((torch.bfloat16,) * 4, {"ledger", "scaler"}),
    "fp64": ((torch.float64,) * 4, {"ledger"}),
}
POINTERS = {
    "chunks_ptr": "*i64",
    "rows_ptr": "*i64",
    "grads_ptr": "*i64",
    "hyperparameters_ptr": "*fp64",
    "grad_scale_ptr": "*fp32",
    "found_inf_ptr": "*fp32",
    "ledger_ptr": "*fp64",
    "bias_correction1_ptr": "*fp64",
    "bias_correction2_ptr": "*fp64",
    "eps_ptr": "*fp64",
    "partials_ptr": "*fp64",
    "sums_ptr": "*fp64",
    "forces_ptr": "*fp64",
    "histograms_ptr": "*i64",
    "counts_ptr": "*i32",
}


def compiled(kernel: Kernel, absent: set[str], target: GPUTarget):
    """A kernel; the pointers that are `absent` are None."""
    names = kernel.function.arg_names
    constants = kernel.constants | dict.fromkeys(absent)
    signature = {name: "constexpr" if name in constants else POINTERS[name] for name in names}
    source = ASTSource(
        kernel.function, signature, {(names.index(name),): value for name, value in constants.items()}
    )
    return triton.compile(source, target=target, options=kernel.options)


def cubin_facts(cubin: bytes) -> dict:
    """Registers of a thread, and its stack and local memory: spilled registers lie there."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    assert found.keys() == {"REG", "STACK", "LOCAL"}, f"cuobjdump speaks otherwise now: {usage}"
    return {"registers": found["REG"], "spilled_bytes": found["STACK"] + found["LOCAL"]}


def facts(kernel) -> dict:
    shared = {"rearrangements": kernel.asm["ttgir"].count("convert_layout")}
    if "ptx" in kernel.asm:
        wide = {
            f"{what}s_of_16_bytes": len(
                re.findall(rf"{code}\.global\S*\.(?:v4\.b32|v2\.b64)", kernel.asm["ptx"])
            )
            for what, code in (("load", "ld"), ("store", "st"))
        }
        return {**shared, **wide, **cubin_facts(kernel.asm["cubin"])}
    code = kernel.asm["amdgcn"]
    spills = re.findall(r"(?:vgpr_spill_count|sgpr_spill_count|ScratchSize):\s*(\d+)", code)
    registers = re.findall(r"\.vgpr_count:\s*(\d+)", code)
    assert (len(spills), len(registers)) == (3, 1), "the assembly names its registers otherwise now"
    wide = {
        f"{what}s_of_16_bytes": len(re.findall(rf"(?:global|flat|buffer)_{what}_dwordx4", code))
        for what in ("load", "store")
    }
    return {**shared, **wide, "registers": int(registers[0]), "spilled_bytes": sum(map(int, spills))}


def kernels(warp_size: int) -> Iterator[tuple[str, str, Kernel, set[str]]]:
    """Operation, name of the dtypes, kernel, and the pointers that are None."""
    numbers = {"sums": {"hyperparameters_ptr"}, "forces": {"bias_correction2_ptr", "eps_ptr"}}
    for dtypes, columns in DTYPES.items():
        for operation, absent in numbers.items():
            if operation == "sums" and not dtypes.startswith("fp32"):
                continue  # but for the first lines it is the kernel of the forces
            tuning = tuning_of("sums", warp_size)
            yield (
                operation,
                dtypes,
                sum_kernel(columns, tuning, warp_size),
                absent | {"histograms_ptr", "counts_ptr"},
            )
            tuning = tuning_of("sums and histogram", warp_size)
            counts = {"counts_ptr"} if tuning.on_chip else set()
            yield (
                f"{operation} and histogram",
                dtypes,
                sum_kernel(columns, tuning, warp_size),
                absent | counts,
            )
    for operation in numbers:
        yield f"combine {operation}", "fp64", combining_kernel(operation), set()
    for dtypes, (columns, options) in STEPS.items():
        absent = set() if "scaler" in options else {"grad_scale_ptr", "found_inf_ptr"}
        absent |= set() if "ledger" in options else {"partials_ptr"}
        padded = (*columns, *[None] * (5 - len(columns)))
        yield "step", dtypes, step_kernel(padded, tuning_of("adamw", warp_size), warp_size), absent
    yield "finish", "fp64", combining_kernel("adamw"), set()


def main() -> None:
    for name, target in TARGETS.items():
        for operation, dtypes, kernel, absent in kernels(target.warp_size):
            found = facts(compiled(kernel, absent, target))
            print(json.dumps({"target": name, "operation": operation, "dtypes": dtypes, **found}))


if __name__ == "__main__":
    main()

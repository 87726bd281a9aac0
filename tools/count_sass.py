#!/usr/bin/env python3
"""Counts the machine instructions of the CUDA kernels per element of x, without a GPU.

    python tools/count_sass.py [--arch 90] [--images 128] [--json]

prints a table: kernel, dtype, channels, registers, spilled bytes, shared memory, lane instructions per element of x,
and the bandwidth that issuing them leaves possible. Needs nvcc, and nvdisasm from the triton package or on PATH.

Method. The kernels of csrc/cuda/lrn_pool.cuh are compiled to a cubin with line information and disassembled. The
instructions are cut into basic blocks at labels and branches, and a block's size is multiplied by the number of times
that the warps of the whole launch enter it:
* the main loop, the strongly connected blocks around the barrier (BAR): all warps, once an output row (forward) or as
  often as there are groups of 2x2 positions for a block to take (backward);
* in it, blocks whose instructions come mostly from the source lines of `give_output`: only the warps that have an
  output; of `exact_output`: never, since no window of ordinary data has a NaN or inf;
* the loops of `sum_block`: the warps that have a channel, once a term and unrolled addition;
* every other block: all warps, once. Of two alternatives (float32 or 16-bit bias) both count, so this errs upwards.
Predicated-off instructions and uniform ones count: they are issued. The sum times 32 lanes, divided by N C H W, is the
result. Idle lanes of partly filled warps, rows that two strips share and quads past the edge of an odd map are all in
it.
"""

import argparse
import collections
import json
import math
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "lrn_pool.cuh"  # includes the others beside it
TYPES = {"float32": ("float", 4), "bfloat16": ("__nv_bfloat16", 2), "float16": ("__half", 2)}
STAGES = {48: (55, 55), 128: (27, 27)}  # channels: height, width; layers 1 and 2 of a tower
FORWARD_THREADS, BACKWARD_THREADS = 448, 256  # as in lrn_pool.cuh
# Assumed of an H200: multiprocessors, lanes a clock, clock (Hz), memory bandwidth (bytes a second). Only the ceiling
# uses them.
MULTIPROCESSORS, LANES, CLOCK, BANDWIDTH = 132, 128, 1.83e9, 4.3e12


def tool(name):
    """Path of a CUDA binary tool, or None."""
    path = Path(sysconfig.get_path("purelib")) / "triton" / "backends" / "nvidia" / "bin" / name
    return str(path) if path.exists() else shutil.which(name)


def compile_kernels(kernels, arch, folder):
    """Compiles instantiations such as "lrn_pool_forward<float, 1, 1, true>". Returns the cubin's path and ptxas's
    report."""
    text = "".join(
        f"template __global__ void lrn_pool::{kernel}(const "
        f"{'ForwardArguments' if 'forward' in kernel else 'BackwardArguments'});\n"
        for kernel in kernels
    )
    unit, cubin = Path(folder) / "kernels.cu", Path(folder) / f"kernels_{arch}.cubin"
    unit.write_text(f'#include "{SOURCE}"\nusing namespace lrn_pool;\n{text}', encoding="utf-8")
    process = subprocess.run(
        ["nvcc", "-std=c++20", "-O3", "-cubin", "-lineinfo", f"-arch=sm_{arch}", "-Xptxas", "-v", "-o", cubin, unit],
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    return cubin, process.stderr


def resources(report):
    """ptxas -v: mangled name -> (registers, bytes of spill stores and loads)."""
    usage = {}
    for part in report.split("Compiling entry function '")[1:]:
        stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part).groups())
        usage[part[: part.index("'")]] = int(re.search(r"Used (\d+) registers", part).group(1)), stores + loads
    return usage


def lines_of(function):
    """Where a device function stands: (file name, line) of its name to those of the brace that closes it."""
    for path in SOURCE.parent.glob("*.cuh"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for first, line in enumerate(lines, 1):
            if re.match(rf"\S.*\b{function}\(.*\{{$", line):
                last = first + next(i for i, line in enumerate(lines[first:], 1) if line == "}")
                return {(path.name, i) for i in range(first, last + 1)}
    raise ValueError(f"{function} is in none of the files beside {SOURCE}")


class Block:
    """A basic block: instructions, the innermost to outermost source lines of each, and the blocks that may follow."""

    def __init__(self, label):
        self.label, self.instructions, self.lines, self.next = label, [], [], []


def disassemble(cubin):
    """Mangled name -> basic blocks in order, with `next` filled in."""
    text = subprocess.run(
        [tool("nvdisasm"), "-gi", "-c", cubin], check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout
    kernels, blocks, chain, fresh = {}, None, [], False
    for line in text.splitlines():
        if section := re.match(r"\.text\.(\w+):", line):
            blocks = kernels[section.group(1)] = [Block("entry")]
        elif line.startswith(".section") or "\t.section" in line:
            blocks = None
        elif blocks is None:
            continue
        elif label := re.match(r"(\.L_\w+):", line):
            blocks.append(Block(label.group(1)))
        elif frame := re.search(r'//## File "(.*?)", line (\d+)', line):
            frames = [frame.groups(), *re.findall(r'inlined at "(.*?)", line (\d+)', line)]
            chain = (chain if fresh else []) + [(Path(name).name, int(number)) for name, number in frames]
            fresh = True
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            fresh = False
            blocks[-1].instructions.append(instruction.group(1))
            blocks[-1].lines.append(chain)
            if re.search(r"\b(BRA|EXIT|RET|BRX|CALL)\b", instruction.group(1)):
                blocks.append(Block(None))
    for blocks in kernels.values():
        blocks[:] = [block for block in blocks if block.instructions or block.label]
        labels = {block.label: block for block in blocks if block.label}
        for block, fallthrough in zip(blocks, [*blocks[1:], None]):
            last = block.instructions[-1] if block.instructions else ""
            if re.search(r"\b(RET|BRX|JMP)\b", last):  # CALL.REL.NOINC without a RET is a far jump
                raise ValueError(f"{last!r}: returns and indirect jumps are not followed")
            block.next = [labels[target] for target in re.findall(r"(?:BRA|CALL).*`\((\.L_\w+)\)", last)]
            unconditional = re.match(r"(BRA|EXIT|CALL)\b", last) and not re.match(r"BRA(\.\w+)* !?U?P\d", last)
            if not unconditional and fallthrough is not None:
                block.next.append(fallthrough)
    return kernels


def cycles(blocks):
    """The sets of blocks that can reach each other: the loops, outermost only."""

    def reachable(start):
        descendants, stack = set(), list(start.next)
        while stack:
            block = stack.pop()
            if block not in descendants:
                descendants.add(block)
                stack.extend(block.next)
        return descendants

    reach = {block: reachable(block) for block in blocks}
    return {
        frozenset(other for other in blocks if other in reach[block] and block in reach[other])
        for block in blocks
        if block in reach[block]
    }


def plan(kernel, images, channels, height, width):
    """As plan_forward and plan_backward: blocks, warps of a block, entries of the main loop by all blocks, warps with
    outputs."""
    groups = channels // 8
    if "backward" in kernel:
        quads, per_block = images * -(-height // 2) * -(-width // 2), BACKWARD_THREADS // groups
        chunks = -(-quads // per_block)
        return min(chunks, 2 * MULTIPROCESSORS), BACKWARD_THREADS // 32, chunks, 0
    out_height, out_width = (height - 2) // 2 + 1, (width - 2) // 2 + 1
    tiles = -(-out_width // ((FORWARD_THREADS // groups - 1) // 2))
    columns = -(-out_width // tiles)
    tiles = -(-out_width // columns)
    times = []
    for strips in range(1, min(out_height, 64) + 1):
        rows = -(-out_height // strips)
        waves = -(-images * tiles * -(-out_height // rows) // (2 * MULTIPROCESSORS))
        times.append((waves * (2 * rows + 2), strips))
    rows = -(-out_height // min(times)[1])
    blocks = images * tiles * -(-out_height // rows)
    return (blocks, -(-(2 * columns + 1) * groups // 32), images * tiles * out_height, -(-columns * groups // 32))


def warp_instructions(blocks, kernel, images, channels, height, width):
    """Instructions that all warps of a launch issue."""
    grid, warps, entries, output_warps = plan(kernel, images, channels, height, width)
    functions = {name: lines_of(name) for name in ("exact_output", "give_output", "sum_block")}

    def origin(block):
        votes = collections.Counter(
            next((name for name, lines in functions.items() if lines & set(chain)), "") for chain in block.lines
        )
        return votes.most_common(1)[0][0] if votes else ""

    loops = cycles(blocks)
    main_loops = [
        loop for loop in loops if any("BAR" in instruction for block in loop for instruction in block.instructions)
    ]
    if len(main_loops) != 1:
        raise ValueError(f"{len(main_loops)} loops with a barrier; one is expected")
    inner_blocks = set().union(*(loop for loop in loops if loop is not main_loops[0]))
    total = 0
    for block in blocks:
        size = sum(not instruction.startswith("NOP") for instruction in block.instructions)
        if block.instructions and block.next == [block] and block.instructions[-1].startswith("BRA"):
            continue  # the endless loop that pads a kernel
        place = origin(block)
        if place == "exact_output":
            continue
        if block in main_loops[0]:
            total += size * entries * (output_warps if place == "give_output" else warps)
        elif place == "sum_block" and block in inner_blocks:
            additions = sum("FADD" in instruction for instruction in block.instructions)
            trips = BACKWARD_THREADS // (channels // 8) // additions if additions and block in block.next else 1
            total += size * grid * trips * -(-channels // 32)
        else:
            total += size * grid * warps
    return total


def bytes_an_element(kernel, size, height, width):
    """Bytes of memory traffic per element of x: forward x, y and argmax; backward x, dy, argmax and dx."""
    ratio = ((height - 2) // 2 + 1) * ((width - 2) // 2 + 1) / (height * width)
    return size + (size + 1) * ratio if "forward" in kernel else 2 * size + (size + 1) * ratio


def shared_bytes(kernel, dtype, channels):
    """As the plans: forward passes 2 or (float32, with codes) 4 planes twice, and float32 keeps 2 more and the bias."""
    if "backward" in kernel:
        return 8 * (BACKWARD_THREADS + 1) * 16 + (dtype == "float32") * 2 * BACKWARD_THREADS * 16 + channels * 4
    lean = dtype == "float32"
    return (2 * (4 if lean else 2) + 2 * lean) * FORWARD_THREADS * 16 + (channels + 4) * 4


def table(arch=90, images=128, dtypes=("float32", "bfloat16", "float16"), relu=1):
    """One dict a kernel, dtype and stage; relu "before", argmax saved."""
    names = {
        f"lrn_pool_{way}<{TYPES[dtype][0]}, 1, {relu}{', true' if way == 'forward' else ''}>": (way, dtype)
        for dtype in dtypes
        for way in ("forward", "backward")
    }
    with tempfile.TemporaryDirectory() as folder:
        cubin, report = compile_kernels(names, arch, folder)
        blocks, usage = disassemble(cubin), resources(report)
    rows = []
    for way, dtype in names.values():
        for channels, (height, width) in STAGES.items():
            code = {"float32": "If", "bfloat16": "I13__nv_bfloat16", "float16": "I6__half"}[dtype]
            mangled = next(name for name in blocks if f"lrn_pool_{way}{code}" in name)
            instructions = 32 * warp_instructions(blocks[mangled], way, images, channels, height, width)
            an_element = instructions / (images * channels * height * width)
            budget = MULTIPROCESSORS * LANES * CLOCK / BANDWIDTH * bytes_an_element(way, TYPES[dtype][1], height, width)
            rows.append(
                {
                    "kernel": way,
                    "dtype": dtype,
                    "channels": channels,
                    "registers": usage[mangled][0],
                    "spilled_bytes": usage[mangled][1],
                    "shared_bytes": shared_bytes(way, dtype, channels),
                    "lane_instructions": an_element,
                    "budget": budget,
                    "ceiling": min(1.0, budget / an_element),
                }
            )
    return rows


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", type=int, default=90, help="compute capability without the dot (90)")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    arguments = parser.parse_args()
    for name in ("nvcc", "nvdisasm"):
        if not (shutil.which(name) if name == "nvcc" else tool(name)):
            sys.exit(
                f"count_sass: {name} was not found; nvcc comes with the CUDA toolkit, nvdisasm also with the "
                "triton package"
            )
    rows = table(arguments.arch, arguments.images)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print("| kernel | dtype | C | registers | spilled B | shared KB | lane instr / element | budget | ceiling |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['kernel']} | {row['dtype']} | {row['channels']} | {row['registers']} | {row['spilled_bytes']} | "
            f"{row['shared_bytes'] / 1024:.1f} | {row['lane_instructions']:.1f} | {row['budget']:.1f} | "
            f"{math.floor(100 * row['ceiling'])} % |"
        )


if __name__ == "__main__":
    main()

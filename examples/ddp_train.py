"""Real PyTorch DDP that can be checked: fits a known linear map, and says how near it came.

Knows nothing of agentd; the same file runs under torchrun:

    agentctl run --nodes a,b,c --nproc-per-node 2 --max-restarts 3 \\
        examples/ddp_train.py --checkpoint-dir /shared/checkpoints
    torchrun --nproc-per-node 2 examples/ddp_train.py --checkpoint-dir /tmp/checkpoints

Every restart resumes from the newest checkpoint. The data of a step depends on the step alone and is split
over the ranks, so a run that was hurt ends with the parameters of one that was not, and a run whose size
changed ends within rounding of them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

FEATURES = 8
TARGETS = 3
GLOBAL_BATCH = 120


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=200, help="optimizer steps in all (default: %(default)s)"
    )
    parser.add_argument("--checkpoint-dir", type=Path, required=True, help="folder that every node can reach")
    parser.add_argument("--checkpoint-every", type=int, default=10, help="steps (default: %(default)s)")
    parser.add_argument(
        "--step-seconds", type=float, default=0.0, help="pause after a step (default: %(default)s)"
    )
    parser.add_argument("--print-every", type=int, default=20, help="steps (default: %(default)s)")
    return parser.parse_args()


def shard(step: int, rank: int, world_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's part of a step's batch: inputs (n, FEATURES) and targets (n, TARGETS)."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(GLOBAL_BATCH, FEATURES, generator=generator, dtype=torch.float64)
    truth = torch.arange(FEATURES * TARGETS, dtype=torch.float64).reshape(FEATURES, TARGETS) / 10
    return inputs[rank::world_size], (inputs @ truth)[rank::world_size]


def save(path: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint that is whole or not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Read the checkpoint if there is one; the number of steps it has done."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def pick_device() -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def train(options: argparse.Namespace) -> None:
    """Train to the last step and write `result.json`."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    device = pick_device()
    torch.manual_seed(0)
    model = nn.Linear(FEATURES, TARGETS, dtype=torch.float64).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    checkpoint = options.checkpoint_dir / "checkpoint.pt"
    done = load(checkpoint, model, optimizer, device)
    # Nobody may replace the file before all have read the same one.
    dist.barrier()
    parallel = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    print(f"rank {rank} of {world_size}: restart {restart}, goes on after step {done}", flush=True)

    loss_value = float("nan")
    for step in range(done, options.steps):
        inputs, targets = (part.to(device) for part in shard(step, rank, world_size))
        # DDP takes the mean over ranks; this makes it the mean over the batch, however it is split.
        loss = (parallel(inputs) - targets).square().sum() * world_size / (GLOBAL_BATCH * TARGETS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_value = float(loss.detach())
        if rank == 0 and (step + 1) % options.checkpoint_every == 0:
            save(checkpoint, step + 1, model, optimizer)
        if rank == 0 and (step + 1) % options.print_every == 0:
            print(f"step {step + 1} loss {loss_value:.3e}", flush=True)
        if options.step_seconds:
            time.sleep(options.step_seconds)

    dist.barrier()
    if rank == 0:
        parameters = [value.tolist() for value in model.state_dict().values()]
        result = {
            "steps": options.steps,
            "loss": loss_value,
            "world_size": world_size,
            "parameters": parameters,
        }
        (options.checkpoint_dir / "result.json").write_text(json.dumps(result))
        print(f"done: loss {loss_value:.3e}", flush=True)


def main() -> None:
    """Join the process group that the environment describes, and train."""
    options = parse_arguments()
    options.checkpoint_dir.mkdir(parents=True, exist_ok=True)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train(options)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

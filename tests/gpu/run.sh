#!/usr/bin/env bash
# Collect, LoRA-GRPO in bfloat16 and the CPU's loss again on this machine's first GPU, in 8 minutes at most:
#
#     make install && bash tests/gpu/run.sh [--small]
#
# The environment needs a torch built for the GPU; PYTHON names its interpreter (default: .venv/bin/python). One JSON
# line comes out; exit 1 says that one of its checks is false. --small is a dry run on the CPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}" PYTHONPATH="$PWD" LANGSMITH_TRACING=false TOKENIZERS_PARALLELISM=false
exec timeout 480 "${PYTHON:-.venv/bin/python}" -m tests.gpu.check "$@"
